"""Copies of remote files, in a folder of bounded size that several processes use at once.

A file that is held is not removed while its stream, or a memory map of it, is open in any process.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from bigr.runtime.errors import BigrError
from bigr.runtime.full_disk import NO_ROOM

_PASSING = ".part"
_bytes = 10 * 10**9


def set_bound(gigabytes: float) -> None:
    """Set what `cache_of` keeps at most, in 10⁹ bytes: `run.cache_gb`. For this process."""
    global _bytes
    _bytes = int(gigabytes * 1e9)


def cache_of(root: Path) -> "Cache":
    """The cache of the project in `root`."""
    return Cache(root / ".cache" / "sources", _bytes)


@dataclass(frozen=True)
class Cache:
    """Copies of remote files in a folder; the longest unused are removed where there are more than `bytes` of them."""

    folder: Path
    bytes: int

    def open(self, key: str, fetch: Callable[[Path], None], *, held: bool = False) -> BinaryIO:
        """The copy under `key`; where there is none, `fetch` writes it. It can be read also once it is removed.

        held: not to be removed while the stream, or a map of it, is open.
        """
        place = self._place(key)
        with self._explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(_lock_of(place)):
                stream = _opened(place, fetch)
                if held:
                    fcntl.flock(stream, fcntl.LOCK_SH)
            self._shrink(place)
        return stream

    def keep(self, key: str, path: Path) -> None:
        """Take a file in as the copy under `key`. It is no longer at `path`."""
        place = self._place(key)
        with self._explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(_lock_of(place)):
                passing = place.with_suffix(_PASSING)
                shutil.move(path, passing)
                passing.replace(place)
            self._shrink(place)

    def has(self, key: str) -> bool:
        """Whether there is a copy under `key`, which then counts as used."""
        try:
            os.utime(self._place(key))
        except FileNotFoundError:
            return False
        return True

    def _place(self, key: str) -> Path:
        return self.folder / sha256(key.encode()).hexdigest()[:32]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = "free some space, or lower run.cache_gb" if error.errno in NO_ROOM else "correct its rights"
            raise BigrError(
                f"{self.folder} cannot keep copies of remote files ({error.strerror or error}); {remedy}"
            ) from None

    def _shrink(self, last: Path) -> None:
        """Remove what is above the bound, but for the copy opened last, those held, and what killed processes left."""
        with FileLock(self.folder / "removal.lock"):
            for passing in self.folder.glob(f"*{_PASSING}"):
                with suppress(Timeout), FileLock(_lock_of(passing), timeout=0):  # else it is being written
                    passing.unlink(missing_ok=True)
            copies = [(path, path.stat()) for path in self.folder.iterdir() if not path.suffix]
            total = sum(status.st_size for _, status in copies)
            for path, status in sorted(copies, key=lambda copy: copy[1].st_mtime_ns):
                if total > self.bytes and path != last and _removed_unless_held(path):
                    total -= status.st_size


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


def _removed_unless_held(path: Path) -> bool:
    with path.open("r+b") as stream:  # on NFS only a file that is open to be written can be locked for one alone
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink()
        return True
