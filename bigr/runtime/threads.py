"""Threads that work ahead of their reader."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(work: Callable[[T], R], items: Iterable[T], workers: int, ahead: int = 256) -> Generator[R, None, None]:
    """`work(item)` of each item, in order, computed by `workers` threads (at least one).

    At most `ahead` results are kept for the reader, so that memory is bounded (`Executor.map` reads all items first).
    It pays for work that releases Python's lock, as Pillow's decoders and hashlib do. An exception of `work` is raised
    where its result would have been.
    """
    pool, pending = ThreadPoolExecutor(max(1, workers)), deque[Future[R]]()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
