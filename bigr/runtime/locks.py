"""One process at a time in a folder: a lock that ends with the process that holds it, however that ends.

The lock is on the folder itself (`flock`), so that no file is left behind. Stages hold locks of their own (`runner`);
this is for commands, which several people or terminals may start beside each other.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Held(Exception):
    """Another process holds the folder."""


@contextmanager
def only_one(folder: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold `folder`, which is made if need be, and may be removed meanwhile.

    waiting: called once where another process holds it, before this one waits for it; without, `Held` is raised.
    Raises `OSError` where there can be no such folder.
    """
    descriptor = _opened(folder)
    try:
        while not _locked(descriptor, folder, waiting):
            os.close(descriptor)  # who held it has removed it
            descriptor = _opened(folder)
        yield
    finally:
        os.close(descriptor)


def _opened(folder: Path) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # removed in between
            continue


def _locked(descriptor: int, folder: Path, waiting: Callable[[], None] | None) -> bool:
    """Lock the folder behind `descriptor`; whether it is still that of this name."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            raise Held(str(folder)) from None
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return _is_at(descriptor, folder)


def _is_at(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False
