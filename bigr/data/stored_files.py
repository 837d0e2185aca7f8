"""The files that an index.json names: here, or at a URL, with size and checksum, and copied here to be read.

A file goes to its URL under a name that holds its checksum: what another run wrote is never replaced, and what is there
already is not copied again. Nothing there is ever removed.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bigr.runtime.copies import Cache, cache_of
from bigr.runtime.errors import BigrError
from bigr.runtime.files import atomic_folder, sha256_file, write_json
from bigr.runtime.paths import is_url, printable
from bigr.runtime.remote_files import NotThere, RemoteFolder, parent_of
from bigr.runtime.threads import map_ahead
from bigr.runtime.unfinished import become, check_parts, remove_parts

_AT_ONCE = 8
"""Files that are copied here at the same time."""
_INDEX = "index.json"


@dataclass(frozen=True)
class StoredFile:
    """A file of a stage's output. where: its path or URL; stage: which wrote it, for messages.

    size, in bytes, sha256, and cache, which holds the copies, are of a file at a URL alone.
    """

    where: str
    stage: str
    size: int = 0
    sha256: str = ""
    cache: Cache | None = None

    def __str__(self) -> str:
        return printable(self.where)

    @property
    def path(self) -> Path:
        """Of a file that is here."""
        return Path(self.where)

    @property
    def remote(self) -> bool:
        """Whether it is at a URL."""
        return self.cache is not None

    def open(self, *, held: bool = False, buffering: int = -1) -> BinaryIO:
        """The file, to be read and sought in; of one at a URL a copy, which is made and checked where there is none.

        held: the copy stays while the stream, or a memory map of it, is open; buffering: of a file that is
        here. Raises `OSError` for a file that is here; `BigrError` for one at a URL, as where it is missing, or has
        changed since the stage ran.
        """
        if self.cache is None:
            return self.path.open("rb", buffering)
        return self.cache.open(self.sha256, self._copy, held=held)

    def bytes_there(self) -> int:
        """Its size. Raises `OSError` for a file that should be here and is not."""
        return self.size if self.remote else self.path.stat().st_size

    def checksum(self) -> str:
        """SHA-256 of its content; of a file at a URL, of that which the stage wrote or found."""
        return self.sha256 if self.remote else sha256_file(self.path)

    def _copy(self, to: Path) -> None:
        folder, name = parent_of(self.where)
        there, again = RemoteFolder(folder), f"run the stage {self.stage} again"
        try:
            size = there.state(name)[1]
            if size not in (None, self.size):
                raise BigrError(
                    f"{self} has changed since the stage {self.stage} ran: it has {size:,} bytes, had {self.size:,}; "
                    f"{again}"
                )
            there.get(name, to, self.size)
        except NotThere:
            raise BigrError(f"{self} is not there any more; put it back, or {again}") from None
        if sha256_file(to) != self.sha256:
            raise BigrError(
                f"{self} has changed since the stage {self.stage} ran, or is damaged: its checksum is another; put the "
                f"file back, or remove it and {again}"
            )


def stored_file(folder: Path, entry: Mapping[str, Any], stage: str) -> StoredFile:
    """The file of an entry of `folder`/index.json. Copies of remote ones are in the cache of the folder's project.

    Raises `KeyError` or `ValueError` where the entry lacks what a file needs.
    """
    name = str(entry["name"])
    if not is_url(name):
        return StoredFile(str(folder / name), stage)
    project = folder.resolve().parent.parent  # it is data/shards, data/codes or data/text, or a link to one
    return StoredFile(name, stage, int(entry["size"]), str(entry["sha256"]), cache_of(project))


def fetch(files: Iterable[StoredFile]) -> None:
    """Copy here those of the files that are at URLs and have no copy."""
    missing = [file for file in files if file.cache is not None and not file.cache.has(file.sha256)]
    for _ in map_ahead(lambda file: file.open().close(), missing, _AT_ONCE):
        pass


def check_room(files: Sequence[StoredFile], what: str) -> None:
    """Raise `BigrError` where `run.cache_gb` or the disk has no room for copies of all files at once.

    what: names them.
    """
    for cache in {file.cache for file in files if file.cache is not None}:
        size = sum(file.size for file in files)
        if size > cache.bytes:
            raise BigrError(
                f"{what} take {size / 1e9:.3g} GB and must all be here at once, run.cache_gb allows "
                f"{cache.bytes / 1e9:.3g}; raise it"
            )
        cache.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache.folder).free
        missing = sum(file.size for file in files if not cache.has(file.sha256))
        if missing > free:
            raise BigrError(
                f"{what} need {missing / 1e9:.3g} GB more in {cache.folder}, the disk has {free / 1e9:.3g}; free some "
                "space"
            )


@dataclass(frozen=True)
class FileStore:
    """A folder at a URL to which a stage's files go. cache: which keeps them here, as far as its bound allows."""

    url: str
    cache: Cache

    def put(self, path: Path, *, kept: bool = True) -> dict[str, Any]:
        """Copy a finished file there, unless it is there; its entry in index.json: `name` (its URL), `size`, `sha256`.

        kept: the file here becomes the copy in the cache, and is no longer at `path`.
        """
        there, digest, size = RemoteFolder(self.url.rstrip("/")), sha256_file(path), path.stat().st_size
        name = f"{path.stem}-{digest[:16]}{path.suffix}"
        try:
            found = there.state(name)[1]
        except NotThere:
            found = None
        if found != size:
            there.put(path, name)
        if kept:
            self.cache.keep(digest, path)
        return {"name": there.address(name), "size": size, "sha256": digest}


def store_of(root: Path, url: str | None) -> FileStore | None:
    """The store at `url` of the project in `root`; None where there is none."""
    return None if url is None else FileStore(url, cache_of(root))


@dataclass(frozen=True)
class StoredParts:
    """The files of a stage that works in parts, while it runs.

    folder: holds them, or, with a store, a note of each that is there; stage: names it, for messages.
    """

    folder: Path
    store: FileStore | None
    stage: str

    def path(self, name: str) -> Path:
        """Where a part is to be written."""
        return self.folder / name

    def finished(self, name: str) -> bool:
        """Whether a part is done. One that a killed run has written and not yet put to its store is put there."""
        note = self._note(name)
        if self.store is not None and not note.is_file() and self.path(name).is_file():
            self.finish(name)
        return note.is_file()

    def finish(self, name: str) -> None:
        """Put a part that has been written to its store, if there is one."""
        if self.store is not None:
            write_json(self._note(name), self.store.put(self.path(name)))

    def entries(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """The entries of these parts in index.json. `BigrError` where one is missing, in another machine's folder."""
        names = list(names)
        check_parts(self.folder, [self._note(name).name for name in names])
        if self.store is None:
            return [{"name": name} for name in names]
        return [json.loads(self._note(name).read_text(encoding="utf-8")) for name in names]

    def file(self, entry: Mapping[str, Any]) -> StoredFile:
        """The file of an entry, while the stage runs."""
        if self.store is None:
            return stored_file(self.folder, entry, self.stage)
        return StoredFile(entry["name"], self.stage, entry["size"], entry["sha256"], self.store.cache)

    def become(self, folder: Path) -> None:
        """Make what is finished the content of `folder`, in place of what was there: index.json, written last to the
        parts' folder, and the parts where there is no store."""
        if self.store is None:
            become(self.folder, folder)
            return
        with atomic_folder(folder) as temporary:
            shutil.move(self.folder / _INDEX, temporary / _INDEX)  # perhaps from another disk
        remove_parts(self.folder)

    def _note(self, name: str) -> Path:
        """The file in the folder that tells that a part is finished."""
        return self.folder / (name if self.store is None else f"{name}.json")
