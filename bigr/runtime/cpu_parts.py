"""A batch in several parts at the same time, on a CPU."""

import ctypes
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from itertools import pairwise
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

_ROWS = 48
"""So many rows, times the square of the number of parts, is the smallest batch that is computed in so many parts."""

_one_at_a_time = threading.Lock()


def in_parts(work: Callable[[slice], T], places: range, rows: int, device: torch.device) -> list[T]:
    """`work(part)` of consecutive parts of `places`, in their order; on a CPU all parts run at the same time.

    places: of a batch, in steps of 1; rows: of the networks' matrix products for one place, the tokens of an image.
    `work` must enter autocast and `torch.no_grad` by itself, which hold for one thread only.

    Each part has its own thread and an equal share of torch's threads. Where all threads share one operation, they wait
    for the slowest after each, and beside a busy process that is a thread without a core. The parts do not wait for
    each other. Python runs one thread at a time, so that their number grows with the square root of the batch.
    A GPU's batch, a small one, and one beside another in parts are one part: torch's number of threads is the
    process's. An exception in this thread, such as that of Ctrl-C, ends the other threads at their next operation.
    """
    threads = torch.get_num_threads()
    count = min(threads, len(places), math.isqrt(len(places) * rows // _ROWS)) if device.type == "cpu" else 1
    if count < 2 or not _one_at_a_time.acquire(blocking=False):
        return [work(slice(places.start, places.stop))]
    bounds = [places.start + len(places) * part // count for part in range(count + 1)]
    parts = [_Part(work, slice(*pair)) for pair in pairwise(bounds)]
    try:
        torch.set_num_threads(threads // count)  # of each thread that starts now
        return _results(parts)
    finally:
        torch.set_num_threads(threads)
        _one_at_a_time.release()


class _Part(threading.Thread, Generic[T]):
    """The thread of one part."""

    def __init__(self, work: Callable[[slice], T], places: slice) -> None:
        super().__init__()
        self._work, self._places = work, places
        self.result: Future[T] = Future()

    def run(self) -> None:
        try:
            self.result.set_result(self._work(self._places))
        except BaseException as error:  # raised again in the thread that waits
            self.result.set_exception(error)


def _results(parts: list[_Part[T]]) -> list[T]:
    """Run the parts. Raises the exception of the first that has one."""
    started: list[_Part[T]] = []
    try:
        for part in parts:
            part.start()
            started.append(part)
        return [part.result.result() for part in parts]
    finally:
        for part in started:
            if not part.result.done():
                # Raises SystemExit in the thread at its next step in Python.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(part.ident or 0), ctypes.py_object(SystemExit)
                )
        for part in started:
            part.join()
