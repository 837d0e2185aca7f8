"""Where a source's files are: a folder of this machine, or an address that fsspec knows (s3://, gs://, https://, …).

Names are paths below the root, with forward slashes. Hidden names are passed over. A remote file is copied as a whole
to a cache of bounded size before it is read; a remote image is read by itself and not kept.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol
from urllib.parse import unquote

from bigr.runtime.copies import Cache
from bigr.runtime.errors import BigrError
from bigr.runtime.paths import printable
from bigr.runtime.remote_files import NotThere, RemoteFolder

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")
"""Of image files."""


class Images(list[str]):
    """Names of images, sorted. captioned: those beside which a `.txt` file stands; ignored: files that are neither."""

    def __init__(self) -> None:
        super().__init__()
        self.captioned: set[str] = set()
        self.ignored = 0

    def add(self, folder: str, files: Iterable[str]) -> None:
        """Take the images among the visible files of a folder."""
        names = list(files)
        images = [name for name in names if name.lower().endswith(SUFFIXES)]
        self += [folder + name for name in images]
        if len(images) == len(names):
            return
        stems: dict[str, list[str]] = {}
        for name in images:
            stems.setdefault(name.rpartition(".")[0] + ".txt", []).append(folder + name)
        for name in names:
            self.captioned.update(stems.get(name, ()))
        captions = sum(name in stems for name in names)
        self.ignored += len(names) - len(images) - captions


class Storage(Protocol):
    """A folder with files, local or remote. Errors are `BigrError` and name the path or URL."""

    def where(self, name: str = "") -> str:
        """The path or URL of a file, as messages name it."""

    def address(self, name: str) -> str:
        """The absolute path or the URL of a file, as a setting may name it."""

    def entries(self, folder: str = "") -> tuple[list[str], list[str]]:
        """Names of the folders, sorted, and of the files, sorted, that are visible in `folder` ("" or ending in /)."""

    def images(self, folder: str = "") -> Images:
        """All images below a folder, at any depth."""

    def open(self, name: str) -> BinaryIO:
        """The file, to be read and sought in."""

    def read(self, name: str) -> bytes:
        """The content of a small file. It is not kept."""

    def read_if_there(self, name: str) -> bytes | None:
        """The content of a small file, None where it does not exist."""

    def picture(self, name: str) -> Path | bytes:
        """An image file, or its content."""

    def state(self, name: str) -> list[Any]:
        """Its name, size and time: what changes with the file."""


@dataclass(frozen=True)
class LocalStorage:
    """A folder of this machine. Links are followed."""

    root: Path

    def where(self, name: str = "") -> str:
        return printable(str(self.root / name))

    def address(self, name: str) -> str:
        return str((self.root / name).absolute())

    def entries(self, folder: str = "") -> tuple[list[str], list[str]]:
        with _explained(), os.scandir(self.root / folder) as found:
            visible = [entry for entry in found if not entry.name.startswith(".")]
            folders = {entry.name for entry in visible if entry.is_dir()}
        return sorted(folders), sorted(entry.name for entry in visible if entry.name not in folders)

    def images(self, folder: str = "") -> Images:
        with _explained():
            return image_files(self.root, folder)

    def open(self, name: str) -> BinaryIO:
        with _explained():
            return (self.root / name).open("rb")

    def read(self, name: str) -> bytes:
        with _explained():
            return (self.root / name).read_bytes()

    def read_if_there(self, name: str) -> bytes | None:
        return self.read(name) if (self.root / name).exists() else None

    def picture(self, name: str) -> Path | bytes:
        return self.root / name

    def state(self, name: str) -> list[Any]:
        try:
            status = (self.root / name).stat()
        except OSError as error:  # reading it says the same
            return [printable(name), error.errno]
        return [printable(name), status.st_size, status.st_mtime_ns]


@dataclass(frozen=True)
class RemoteStorage(RemoteFolder):
    """A folder at a URL. Files are opened through the cache."""

    cache: Cache = field(kw_only=True)

    def entries(self, folder: str = "") -> tuple[list[str], list[str]]:
        system, path = self.files[0], self.path(folder)
        try:
            listed = self.retried(folder, lambda: system.ls(path, detail=True, refresh=True))
        except NotThere:
            if not self.web:
                raise
            raise BigrError(
                f"{self.where(folder)} cannot be listed: the server shows no files there; name one, a .tar, .parquet "
                "or .npz file"
            ) from None
        finally:
            system.invalidate_cache()  # else it would keep all that it has listed
        folders, files = set[str](), set[str]()
        for entry in listed:
            above, _, name = entry["name"].rstrip("/").rpartition("/")
            if self.web:
                name = "" if "?" in name or "#" in name else unquote(name)
            if above == path and name and not name.startswith("."):
                (folders if entry["type"] == "directory" else files).add(name)
        return sorted(folders), sorted(files)

    def images(self, folder: str = "") -> Images:
        found = Images()
        waiting = [folder]
        while waiting:
            here = waiting.pop()
            folders, files = self.entries(here)
            found.add(here, files)
            waiting += [f"{here}{name}/" for name in folders]
        found.sort()
        return found

    def open(self, name: str) -> BinaryIO:
        state = self.state(name)
        return self.cache.open(repr((self.url, state)), lambda to: self._get(name, to, state[1]))

    def picture(self, name: str) -> Path | bytes:
        return self.read(name)


def image_files(root: Path, folder: str = "") -> Images:
    """Paths below `root`, sorted, of the files in `root/folder` with an image suffix, at any depth.

    Links are followed, each folder is visited once, hidden names are skipped. Raises `OSError` for a folder that cannot
    be listed.
    """

    def refuse(error: OSError) -> NoReturn:
        raise error

    found = Images()
    seen: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(root / folder, followlinks=True, onerror=refuse):
        status = Path(here).stat()
        if (status.st_dev, status.st_ino) in seen:  # else a link to a folder above would be followed for ever
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(here).relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"  # a path made by `/` would take ten times as long
        found.add(prefix, (name for name in files if not name.startswith(".")))
    found.sort()
    return found


@contextmanager
def _explained() -> Iterator[None]:
    """Makes `BigrError` of a file or folder that cannot be read."""
    try:
        yield
    except OSError as error:
        verb = "listed" if error.filename is not None and Path(os.fsdecode(error.filename)).is_dir() else "read"
        name = "it" if error.filename is None else printable(os.fspath(error.filename))
        raise BigrError(f"{name} cannot be {verb}: {error.strerror or error}") from None
