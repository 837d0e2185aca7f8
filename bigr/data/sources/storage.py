"""Where a source's files are: a folder of this machine, or an address that fsspec knows (s3://, gs://, https://, …).

Names are paths below the root, with forward slashes. Hidden names are passed over. A remote file is copied as a whole
to a cache of bounded size before it is read; a remote image is read by itself and not kept.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol, TypeVar
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock, Timeout

from bigr.runtime.errors import BigrError
from bigr.runtime.full_disk import NO_ROOM

T = TypeVar("T")

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")
"""Of image files."""
_TRIES = 5
_FIRST_WAIT_S = 0.5
"""Before the second try; each further one waits twice as long."""
_TO_INSTALL = {
    **dict.fromkeys(("s3", "s3a"), "'bigr[s3]'"),
    **dict.fromkeys(("gs", "gcs"), "'bigr[gs]'"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
}
_PASSING = ".part"
_CONNECT_S, _SILENCE_S = 60, 300
"""How long a web server may take to answer, and between two pieces of a file. A file as a whole may take any time."""


class NotThere(BigrError):
    """A remote file or folder does not exist, or a web server says neither whether it does nor what it holds."""


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


@dataclass(frozen=True)
class RemoteStorage:
    """A folder at a URL, without the slash at its end. Failing reads are tried again, five times in all.

    Names at web addresses are not quoted, and so are the same as those of the files.
    """

    url: str
    cache: Cache
    options: dict[str, Any] = field(default_factory=dict)

    def where(self, name: str = "") -> str:
        return printable(f"{self.url}/{name}".rstrip("/"))

    @property
    def _web(self) -> bool:
        return is_web(self.url)

    @cached_property
    def _files(self) -> tuple[Any, str]:
        """fsspec's file system, and the root in its own notation."""
        import fsspec

        protocol = self.url.partition("://")[0]
        try:
            system, path = fsspec.url_to_fs(self.url, **(_web_options() if self._web else {}), **self.options)
        except ImportError as error:
            how = f"pip install {_TO_INSTALL[protocol]}" if protocol in _TO_INSTALL else "install it"
            reason = " ".join(str(error).split())
            raise BigrError(
                f"{self.url}: this kind of address needs a package that is missing ({reason}); {how}"
            ) from None
        except ValueError as error:
            raise BigrError(f"{self.url}: {error}; use s3://, gs://, https:// or a path") from None
        return system, path.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:  # the connection stays in its process
        return {name: value for name, value in self.__dict__.items() if name != "_files"}

    def _path(self, name: str) -> str:
        return f"{self._files[1]}/{quote(name) if self._web else name}".rstrip("/")

    def entries(self, folder: str = "") -> tuple[list[str], list[str]]:
        system, path = self._files[0], self._path(folder)
        try:
            listed = self._retried(folder, lambda: system.ls(path, detail=True, refresh=True))
        except NotThere:
            if not self._web:
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
            if self._web:
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
        system, path = self._files[0], self._path(name)

        state = self.state(name)

        def copy(to: Path) -> None:
            system.get_file(path, str(to))
            if state[1] is not None and (size := to.stat().st_size) != state[1]:
                raise OSError(f"{size:,} of {state[1]:,} bytes arrived")

        return self.cache.open(repr((self.url, state)), lambda to: self._retried(name, lambda: copy(to)))

    def read(self, name: str) -> bytes:
        system, path = self._files[0], self._path(name)
        content: bytes = self._retried(name, lambda: system.cat_file(path))
        return content

    def read_if_there(self, name: str) -> bytes | None:
        try:
            return self.read(name)
        except NotThere:
            return None

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
            except Exception as error:  # each file system has errors of its own
                problem = _cause(error) if self._web else error
                if isinstance(problem, OSError) and problem.errno in NO_ROOM:
                    raise
                status = getattr(problem, "status", None)  # of a web server
                reason = " ".join(str(problem).split()) or type(problem).__name__
                if isinstance(problem, FileNotFoundError) or status in (404, 410):
                    raise NotThere(f"{self.where(name)} does not exist; correct the address") from None
                if isinstance(problem, PermissionError) or status in (401, 403):
                    kind = NotThere if self._web else BigrError  # some servers say so of what is not there
                    raise kind(f"{self.where(name)}: access denied ({reason}); check the credentials") from None
                if _lacks_credentials(problem):
                    raise BigrError(f"{self.where(name)} cannot be read ({reason}); check the credentials") from None
                if tries == _TRIES - 1 or (status in range(400, 500) and status not in _BUSY):
                    raise BigrError(f"{self.where(name)} cannot be read ({reason}); try again later") from None
                time.sleep(_FIRST_WAIT_S * 2**tries)
        raise AssertionError


_BUSY = (408, 425, 429)
"""A web server's words for: not now."""


def _cause(error: Exception) -> BaseException:
    """Why a file at a web address cannot be read: fsspec says of each reason that the file is not found."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error


def _lacks_credentials(error: BaseException) -> bool:
    return any(mark in type(error).__name__ for mark in ("Credentials", "ParamValidation", "ProfileNotFound"))


def _web_options() -> dict[str, Any]:
    """aiohttp's own limit is five minutes for a file as a whole."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
    return {"client_kwargs": {"timeout": timeout}}


def is_web(url: str) -> bool:
    """Whether it is an address of the web, whose names are quoted: `a%20b.tar`."""
    return url.startswith(("http://", "https://"))


def parent_of(url: str) -> tuple[str, str]:
    """A URL as the folder it is in, and its last part, as a name."""
    folder, _, name = url.rstrip("/").rpartition("/")
    if not urlsplit(folder).netloc and not folder.endswith("://"):
        return url, ""
    return folder, unquote(name) if is_web(url) else name


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
    """A file name as valid text in one line: bytes that are not UTF-8, and control characters, become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace").translate(_ESCAPES)


_ESCAPES = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


@contextmanager
def _explained() -> Iterator[None]:
    """Makes `BigrError` of a file or folder that cannot be read."""
    try:
        yield
    except OSError as error:
        verb = "listed" if error.filename is not None and Path(os.fsdecode(error.filename)).is_dir() else "read"
        name = "it" if error.filename is None else printable(os.fspath(error.filename))
        raise BigrError(f"{name} cannot be {verb}: {error.strerror or error}") from None
