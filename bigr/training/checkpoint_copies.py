"""Copies of a training's checkpoints at a URL: a machine without the project's folder continues from them.

    <URL>/<stage>/<fingerprint>/step-600-part-0-of-4.safetensors    the files of a checkpoint
    <URL>/<stage>/<fingerprint>/index.json                          the copies that are whole, newest first

The fingerprint, of code, settings and inputs, is in the address: trainings that differ in them keep apart.
"""

import json
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from bigr.runtime.errors import BigrError
from bigr.runtime.remote_files import RemoteFolder
from bigr.training import checkpoint_files

_INDEX = "index.json"


def short(fingerprint: str) -> str:
    """A fingerprint as a name."""
    return sha256(fingerprint.encode()).hexdigest()[:16]


class Copy(NamedTuple):
    """A copy of a checkpoint. step: steps done; parts: of how many files it is."""

    step: int
    parts: int

    def name(self, part: int) -> str:
        """The file of one of its parts."""
        return f"step-{self.step}-part-{part}-of-{self.parts}.safetensors"


class CheckpointCopies:
    """The copies of one training below a URL. All methods raise `BigrError`, which names the URL."""

    def __init__(self, url: str, stage: str, fingerprint: str) -> None:
        self._folder = RemoteFolder(f"{url.rstrip('/')}/{stage}/{short(fingerprint)}")

    def where(self) -> str:
        """The address."""
        return self._folder.where()

    def found(self) -> list[Copy]:
        """The copies that are whole, newest first."""
        text = self._folder.read_if_there(_INDEX)
        try:
            return [Copy(step, parts) for step, parts in json.loads(text or "[]")]
        except (ValueError, TypeError):
            raise BigrError(f"{self._folder.where(_INDEX)} is damaged; delete it, or correct run.checkpoints") from None

    def check(self) -> None:
        """Raise `BigrError` where nothing can be written there."""
        self._write_index(self.found())

    def put(self, path: Path, copy: Copy, part: int) -> None:
        """Copy the file of one part there."""
        self._folder.put(path, copy.name(part))

    def publish(self, newest: Copy) -> None:
        """Take up a copy all of whose parts are there, and delete all but the last two."""
        found = self.found()
        kept = [newest, *(copy for copy in found if copy != newest)][:2]
        self._write_index(kept)
        self._delete(copy for copy in found if copy not in kept)

    def get(self, copy: Copy, folder: Path) -> None:
        """Make a copy the newest checkpoint in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "fetch.lock")  # of machines that share the folder
        with lock:
            for part in range(copy.parts):
                name = checkpoint_files.part_name(copy.step, part, copy.parts)
                self._folder.get(copy.name(part), folder / name)
            checkpoint_files.publish(folder, oldest=0, whole=True)
        Path(lock.lock_file).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete all copies."""
        found = self.found()
        self._folder.remove(_INDEX)
        self._delete(found)

    def _write_index(self, copies: list[Copy]) -> None:
        self._folder.write(_INDEX, json.dumps(copies).encode())

    def _delete(self, copies: Iterable[Copy]) -> None:
        for copy in copies:
            for part in range(copy.parts):
                self._folder.remove(copy.name(part))
