"""A call to the model that can be watched, and stopped, while it runs."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from bigr.imaging.frames import Frame
from bigr.imaging.options import OnStep

T = TypeVar("T")

_one_at_a_time = threading.Lock()


class Stopped(Exception):
    """Raised inside a call that is no longer watched, to end it."""


@dataclass(frozen=True)
class Done(Generic[T]):
    """The call's result, and the seconds that it took, without the wait for other calls."""

    value: T
    seconds: float


def watched(call: Callable[[OnStep], T]) -> Iterator[Frame | Done[T]]:
    """Run `call` in a thread of its own; yields every frame that it reports, and last its result.

    An exception of the call is raised here. If the iterator is closed early, the call ends with its next frame.
    """
    told: queue.SimpleQueue[Frame | Done[T] | BaseException] = queue.SimpleQueue()
    unwatched = threading.Event()

    def on_step(frame: Frame) -> None:
        if unwatched.is_set():
            raise Stopped
        told.put(frame)

    def work() -> None:
        try:
            with _one_at_a_time:  # a call that was stopped may still be in its last iteration
                start = time.perf_counter()
                told.put(Done(call(on_step), time.perf_counter() - start))
        except BaseException as error:  # raised again in the thread that watches
            told.put(error)

    threading.Thread(target=work, daemon=True, name="bigr app").start()
    try:
        while True:
            item = told.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            if isinstance(item, Done):
                return
    finally:
        unwatched.set()
