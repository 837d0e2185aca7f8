"""One process at a time: a lock that ends with the process that holds it, however that ends."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


class Held(Exception):
    """Another process holds the lock."""


@contextmanager
def only_one(path: Path, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path`, which is created where missing and stays afterwards.

    waiting: called once, with the number of the process that holds the lock, before this one waits for it; without,
    `Held` is raised. Raises `OSError` where there can be no such file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if waiting is None:
            raise Held(str(path)) from None
        waiting(path.read_text())
        lock.acquire(poll_interval=0.2)
    try:
        path.write_text(str(os.getpid()))
        yield
    finally:
        lock.release()
