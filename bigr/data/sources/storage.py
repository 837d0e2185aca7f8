"""Where a source's files are: a folder of this machine, or an address that fsspec knows (s3://, gs://, https://, …).

Names are paths below the root, with forward slashes. Hidden names are passed over. A remote file is copied as a whole
to a cache of bounded size before it is read; a remote image is read by itself and not kept.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol, TypeVar
from urllib.parse import urlsplit

from filelock import FileLock

from bigr.runtime.errors import BigrError

T = TypeVar("T")

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")
"""Of image files."""
_TRIES = 5
_FIRST_WAIT_S = 0.5
"""Before the second try; each further one waits twice as long."""
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_PASSING = ".part"


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

    def entries(self, folder: str = "") -> tuple[list[str], list[str]]:
        """Names of the folders, sorted, and of the files, sorted, that are visible in `folder` ("" or ending in /)."""

    def images(self, folder: str = "") -> Images:
        """All images below a folder, at any depth."""

    def open(self, name: str) -> BinaryIO:
        """The file, to be read and sought in."""

    def read(self, name: str) -> bytes:
        """The content of a small file. It is not kept."""

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

    def picture(self, name: str) -> Path | bytes:
        return self.root / name

    def state(self, name: str) -> list[Any]:
        try:
            status = (self.root / name).stat()
        except OSError as error:  # reading it says the same
            return [printable(name), error.errno]
        return [printable(name), status.st_size, status.st_mtime_ns]


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
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):
            if not place.exists():
                passing = place.with_suffix(_PASSING)
                fetch(passing)
                passing.replace(place)
            os.utime(place)
            stream = place.open("rb")
        with FileLock(self.folder / "removal.lock"):
            self._shrink(place)
        return stream

    def _shrink(self, last: Path) -> None:
        kept = sorted(
            (p for p in self.folder.iterdir() if not p.suffix), key=lambda p: (p != last, -p.stat().st_mtime_ns)
        )
        total = 0
        for path in kept:
            total += path.stat().st_size
            if total > self.bytes and path != last:
                path.unlink(missing_ok=True)
                path.with_suffix(".lock").unlink(missing_ok=True)


@dataclass(frozen=True)
class RemoteStorage:
    """A folder at a URL, without the slash at its end. Failing reads are tried again, five times in all."""

    url: str
    cache: Cache
    options: dict[str, Any] = field(default_factory=dict)

    def where(self, name: str = "") -> str:
        return printable(f"{self.url}/{name}".rstrip("/"))

    @cached_property
    def _files(self) -> tuple[Any, str]:
        """fsspec's file system, and the root in its own notation."""
        import fsspec

        protocol = self.url.partition("://")[0]
        try:
            system, path = fsspec.url_to_fs(self.url, **self.options)
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            how = f"pip install 'bigr[{extra}]'" if extra else "install it"
            raise BigrError(
                f"{self.url}: this kind of address needs a package that is missing ({error}); {how}"
            ) from None
        except ValueError as error:
            raise BigrError(f"{self.url}: {error}; use s3://, gs://, https:// or a path") from None
        return system, path.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:  # the connection stays in its process
        return {name: value for name, value in self.__dict__.items() if name != "_files"}

    def _path(self, name: str) -> str:
        return f"{self._files[1]}/{name}".rstrip("/") if name else self._files[1]

    def entries(self, folder: str = "") -> tuple[list[str], list[str]]:
        system, path = self._files[0], self._path(folder)
        listed = self._retried(folder, lambda: system.ls(path, detail=True, refresh=True))
        folders: list[str] = []
        files: list[str] = []
        for entry in listed:
            name = entry["name"].rstrip("/").rpartition("/")[2]
            if name and not name.startswith(".") and entry["name"].rstrip("/") != path:
                (folders if entry["type"] == "directory" else files).append(name)
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
        system, path = self._files[0], self._path(name)

        def fetch(to: Path) -> None:
            self._retried(name, lambda: system.get_file(path, str(to)))

        return self.cache.open(repr((self.url, self.state(name))), fetch)

    def read(self, name: str) -> bytes:
        system, path = self._files[0], self._path(name)
        content: bytes = self._retried(name, lambda: system.cat_file(path))
        return content

    def picture(self, name: str) -> Path | bytes:
        return self.read(name)

    def state(self, name: str) -> list[Any]:
        system, path = self._files[0], self._path(name)
        about = self._retried(name, lambda: system.info(path))
        marks = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "Last-Modified")
        return [name, about.get("size"), *(str(about[mark]) for mark in marks if about.get(mark))]

    def _retried(self, name: str, work: Callable[[], T]) -> T:
        """What `work` returns; where it fails, it is tried again, unless a file is not there or forbidden."""
        for tries in range(_TRIES):
            try:
                return work()
            except FileNotFoundError:
                raise BigrError(f"{self.where(name)} does not exist") from None
            except PermissionError as error:
                raise BigrError(f"{self.where(name)}: access denied ({error}); check the credentials") from None
            except Exception as error:  # each file system has errors of its own
                if _final(error) or tries == _TRIES - 1:
                    reason = " ".join(str(error).split()) or type(error).__name__
                    raise BigrError(f"{self.where(name)} cannot be read ({reason})") from None
                time.sleep(_FIRST_WAIT_S * 2**tries)
        raise AssertionError


def _final(error: Exception) -> bool:
    """Whether trying again cannot help: wrong or missing credentials."""
    return any(mark in type(error).__name__ for mark in ("Credentials", "ParamValidation", "ProfileNotFound"))


def parent_of(url: str) -> tuple[str, str]:
    """A URL as the folder it is in, and its last part."""
    folder, _, name = url.rstrip("/").rpartition("/")
    if not urlsplit(folder).netloc and not folder.endswith("://"):
        return url, ""
    return folder, name


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


def printable(path: str) -> str:
    """A file name as valid text: bytes that are not UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@contextmanager
def _explained() -> Iterator[None]:
    """Makes `BigrError` of a file or folder that cannot be read."""
    try:
        yield
    except OSError as error:
        verb = "listed" if error.filename is not None and Path(os.fsdecode(error.filename)).is_dir() else "read"
        name = "it" if error.filename is None else printable(os.fspath(error.filename))
        raise BigrError(f"{name} cannot be {verb}: {error.strerror or error}") from None
