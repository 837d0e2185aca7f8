"""Files at an address that fsspec knows: s3://, gs://, https://, …

Names are paths below the folder, with forward slashes. What fails is tried again. Errors are `BigrError` and name the
URL.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from bigr.runtime.errors import BigrError
from bigr.runtime.full_disk import NO_ROOM
from bigr.runtime.paths import printable

T = TypeVar("T")

_TRIES, _TRIES_OF_SILENT = 5, 2
"""The latter where a server does not answer at all: each try has waited for it long enough."""
_TRIES_OF_S3FS = 2
"""Within each try, 15 seconds each where the server is silent; also how often it goes on in mid-file."""
_FIRST_WAIT_S = 2.0
"""Before the second try; each further one waits twice as long."""
_TO_INSTALL = {
    **dict.fromkeys(("s3", "s3a"), "'bigr[s3]'"),
    **dict.fromkeys(("gs", "gcs"), "'bigr[gs]'"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
}
_CONNECT_S, _SILENCE_S = 60, 300
"""How long a web server may take to answer, and between two pieces of a file. A file as a whole may take any time."""


class NotThere(BigrError):
    """A remote file or folder does not exist, or a web server says neither whether it does nor what it holds."""


class Unreachable(BigrError):
    """The storage does not give a remote file now, whatever the file is: the fault is not the file's."""


@dataclass(frozen=True)
class RemoteFolder:
    """A folder at a URL, without the slash at its end. Failing reads are tried again, five times in all.

    Names at web addresses are not quoted, and so are the same as those of the files.
    """

    url: str
    options: dict[str, Any] = field(default_factory=dict)

    def where(self, name: str = "") -> str:
        """The URL of a file, as messages name it."""
        return printable(f"{self.url}/{name}".rstrip("/"))

    def address(self, name: str) -> str:
        """The URL of a file, as `parent_of` takes it apart."""
        return f"{self.url}/{quote(name) if self.web else name}"

    @property
    def web(self) -> bool:
        """Whether it is an address of the web."""
        return is_web(self.url)

    @cached_property
    def files(self) -> tuple[Any, str]:
        """fsspec's file system, and the root in its own notation."""
        import fsspec

        with self._known():
            options = _options_of(self.url.partition("://")[0])
            system, path = fsspec.url_to_fs(self.url, **options, **self.options)
        if self.url.startswith(("s3://", "s3a://")):
            system.retries = _TRIES_OF_S3FS
        return system, path.rstrip("/")

    def check(self) -> None:
        """Raise `BigrError` where the address is of no known kind, or needs a package. Connects to nothing."""
        import fsspec

        with self._known():
            fsspec.get_filesystem_class(self.url.partition("://")[0])

    @contextmanager
    def _known(self) -> Iterator[None]:
        protocol = self.url.partition("://")[0]
        try:
            yield
        except ImportError as error:
            how = f"pip install {_TO_INSTALL[protocol]}" if protocol in _TO_INSTALL else "install it"
            reason = " ".join(str(error).split())
            raise BigrError(
                f"{self.url}: this kind of address needs a package that is missing ({reason}); {how}"
            ) from None
        except ValueError as error:
            raise BigrError(f"{self.url}: {error}; use s3://, gs://, https:// or a path") from None

    def __getstate__(self) -> dict[str, Any]:  # the connection stays in its process
        return {name: value for name, value in self.__dict__.items() if name != "files"}

    def path(self, name: str) -> str:
        """A file as fsspec's file system names it."""
        return f"{self.files[1]}/{quote(name) if self.web else name}".rstrip("/")

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        system, path = self.files[0], self.path(name)
        content: bytes = self.retried(name, lambda: system.cat_file(path))
        return content

    def read_if_there(self, name: str) -> bytes | None:
        """The content of a small file, None where it does not exist."""
        try:
            return self.read(name)
        except NotThere:
            return None

    def get(self, name: str, to: Path, size: int | None = None) -> None:
        """Copy a file to `to`, which is overwritten. size: its bytes, where they are known."""
        self._get(name, to, self.state(name)[1] if size is None else size)

    def _get(self, name: str, to: Path, size: int | None) -> None:
        system, path = self.files[0], self.path(name)

        def copy() -> None:
            system.get_file(path, str(to))
            if size is not None and (arrived := to.stat().st_size) != size:
                raise OSError(f"{arrived:,} of {size:,} bytes arrived")

        self.retried(name, copy)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, or replace it: at once, where the storage is a bucket."""
        system, path = self.files[0], self.path(name)
        self.retried(name, lambda: system.pipe_file(path, content), "written")

    def put(self, path: Path, name: str) -> None:
        """Copy a file of this machine there: a large one in parts, and it is there once all have arrived."""
        system, to, size = self.files[0], self.path(name), path.stat().st_size

        def copy() -> None:
            system.put_file(str(path), to)
            if (arrived := system.info(to).get("size")) != size:
                raise OSError(f"{arrived:,} of {size:,} bytes arrived")

        self.retried(name, copy, "written")

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        system, path = self.files[0], self.path(name)
        with suppress(NotThere):
            self.retried(name, lambda: system.rm_file(path), "deleted")

    def state(self, name: str) -> list[Any]:
        """Its name, size and time: what changes with the file."""
        system, path = self.files[0], self.path(name)
        about = self.retried(name, lambda: system.info(path))
        marks = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "Last-Modified")
        return [name, about.get("size"), *(str(about[mark]) for mark in marks if about.get(mark))]

    def retried(self, name: str, work: Callable[[], T], done: str = "read") -> T:
        """What `work` returns; where it fails, it is tried again, unless a file is not there or forbidden.

        done: what could not be, for the message.
        """
        for tries in range(_TRIES):
            try:
                return work()
            except Exception as error:  # each file system has errors of its own
                problem = _cause(error) if self.web else error
                if isinstance(problem, OSError) and problem.errno in NO_ROOM:
                    raise
                status = getattr(problem, "status", None)  # of a web server
                reason = " ".join(str(problem).split()) or type(problem).__name__
                if isinstance(problem, FileNotFoundError) or status in (404, 410):
                    raise NotThere(f"{self.where(name)} does not exist; correct the address") from None
                if isinstance(problem, PermissionError) or status in (401, 403):
                    denied = NotThere if self.web else Unreachable  # some servers say so of what is not there
                    raise denied(f"{self.where(name)}: access denied ({reason}); check the credentials") from None
                if _lacks_credentials(problem):
                    raise Unreachable(
                        f"{self.where(name)} cannot be {done} ({reason}); check the credentials"
                    ) from None
                refused = status in range(400, 500) and status not in _BUSY
                silent = isinstance(problem, TimeoutError) or "Timeout" in type(problem).__name__
                last = _TRIES - 1 if not silent else _TRIES_OF_SILENT - 1
                if tries >= last or refused:
                    kind = BigrError if refused else Unreachable
                    raise kind(f"{self.where(name)} cannot be {done} ({reason}); try again later") from None
                time.sleep(_FIRST_WAIT_S * 2**tries)
        raise AssertionError


_BUSY = (408, 425, 429)
"""A web server's words for: not now."""


def _cause(error: Exception) -> BaseException:
    """Why a file at a web address cannot be read: fsspec says of each reason that the file is not found."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error


def _lacks_credentials(error: BaseException) -> bool:
    return any(mark in type(error).__name__ for mark in ("Credentials", "ParamValidation", "ProfileNotFound"))


def _options_of(protocol: str) -> dict[str, Any]:
    """What fsspec passes on to the client of an address.

    Of S3: s3fs repeats a request, and botocore would repeat each of these five times, 15 seconds long where the server
    is silent. Of the web: aiohttp's own limit is five minutes for a file as a whole.
    """
    if protocol in ("s3", "s3a"):
        import fsspec.config

        own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})  # the user's, which ours would replace
        return {"config_kwargs": {"retries": {"total_max_attempts": 1}, **own}}
    if protocol not in ("http", "https"):
        return {}
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
