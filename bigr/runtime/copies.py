"""Copies of remote files in a folder of bounded size."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from bigr.runtime.errors import BigrError
from bigr.runtime.full_disk import NO_ROOM

_PASSING = ".part"


@dataclass(frozen=True)
class Cache:
    """Copies of remote files in a folder; the longest unused are removed where there are more than `bytes` of them.

    Several processes can use it at once.
    """

    folder: Path
    bytes: int

    def open(self, key: str, fetch: Callable[[Path], None]) -> BinaryIO:
        """The copy under `key`; where there is none, `fetch` writes it. It can be read also once it is removed."""
        place = self.folder / sha256(key.encode()).hexdigest()[:32]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(_lock_of(place)):
                stream = _opened(place, fetch)
            with FileLock(self.folder / "removal.lock"):
                self._shrink(place)
        except OSError as error:
            remedy = "free some space, or lower run.cache_gb" if error.errno in NO_ROOM else "correct its rights"
            raise BigrError(
                f"{self.folder} cannot keep copies of remote files ({error.strerror or error}); {remedy}"
            ) from None
        return stream

    def _shrink(self, last: Path) -> None:
        """Remove what is above the bound, but for the copy opened last, and what killed processes have left."""
        for passing in self.folder.glob(f"*{_PASSING}"):
            with suppress(Timeout), FileLock(_lock_of(passing), timeout=0):  # else it is being written
                passing.unlink(missing_ok=True)
        copies = [(path, path.stat()) for path in self.folder.iterdir() if not path.suffix]
        total = 0
        for path, status in sorted(copies, key=lambda copy: (copy[0] != last, -copy[1].st_mtime_ns)):
            total += status.st_size
            if total > self.bytes and path != last:
                path.unlink()


def _lock_of(place: Path) -> Path:
    """One of 256 locks, which stay: one that is removed while a process waits for it would hold nobody back."""
    return place.with_name(f"{place.name[:2]}.lock")


def _opened(place: Path, fetch: Callable[[Path], None]) -> BinaryIO:
    """The file at `place`, which another process may remove at any time."""
    try:
        stream = place.open("rb")
        with suppress(FileNotFoundError):
            os.utime(place)
    except FileNotFoundError:
        passing = place.with_suffix(_PASSING)
        fetch(passing)
        stream = passing.open("rb")
        passing.replace(place)
    return stream
