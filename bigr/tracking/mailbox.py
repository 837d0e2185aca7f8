"""A queue of deliveries that a separate thread makes in order, so that the sender never waits.

Points (of curves) are collected and delivered together, about once a second. A delivery that fails is tried again after
a pause; what is posted meanwhile stays in the queue, which is bounded in length and bytes. One warning is logged.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from bigr.runtime.masking import masked

log = logging.getLogger(__name__)

_LIMIT = 20_000
_LIMIT_BYTES = 256 << 20
_BATCH = 1000
_GATHER_S = 1.0
_PAUSE_S = 10.0
_CLOSE_S = 3600.0
"""For what is left at the end, model files among it: 18 GB at 5 MB/s."""


class Mailbox:
    """A queue of calls and of points.

    name: of the receiver, for messages; deliver: receives collected points; permanent: whether an error is final: the
    delivery is not tried again.
    """

    def __init__(self, name: str, deliver: Callable[[list[Any]], None], permanent: Callable[[Exception], bool]) -> None:
        self._name, self._deliver, self._permanent = name, deliver, permanent
        self._queue: deque[tuple[Callable[[], None] | None, Any, int]] = deque()
        self._changed = threading.Condition()
        self._closing = self._down = self._full = False
        self._lost = self._bytes = 0
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], None], size: int = 0) -> None:
        """Call `function`, which holds `size` bytes of memory, after everything posted before."""
        self._post(function, None, size)

    def point(self, value: Any) -> None:
        """Deliver `value`, together with the points next to it in the queue."""
        self._post(None, value, 0)

    def _post(self, function: Callable[[], None] | None, value: Any, size: int) -> None:
        with self._changed:
            full = len(self._queue) >= _LIMIT or (size and self._bytes + size > _LIMIT_BYTES)
            if full and not self._closing:
                self._lost += 1
                if not self._full:
                    log.warning("%s: the queue of records is full; further ones are dropped", self._name)
                self._full = True
                return
            self._queue.append((function, value, size))
            self._bytes += size
            self._changed.notify()

    def close(self, last: Callable[[], None]) -> bool:
        """Deliver what is left, then `last`; where the receiver cannot be reached, try once. Whether all was tried."""
        with self._changed:
            self._closing = True
            self._queue.append((last, None, 0))
            self._changed.notify()
        self._thread.join(_CLOSE_S)
        lost = self._lost + len(self._queue)
        if lost:
            log.warning("%s: %d records did not reach it", self._name, lost)
        return not self._queue

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                final = self._closing
                function = self._queue[0][0]
                points: list[Any] = []
                for other, value, _ in self._queue:
                    if other is not None or len(points) == _BATCH:
                        break
                    points.append(value)
            try:
                if function is not None:
                    function()
                else:
                    self._deliver(points)
            except Exception as error:
                if not self._permanent(error):
                    self._say_down(error)
                    if final:
                        return
                    self._wait(_PAUSE_S)
                    continue
                self._lost += 1
                log.warning("%s refused a record: %s", self._name, _line(error))
            else:
                self._say_up()
            with self._changed:
                for _ in range(1 if function is not None else len(points)):
                    self._bytes -= self._queue.popleft()[2]
            self._wait(_GATHER_S)

    def _wait(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, seconds)

    def _say_down(self, error: Exception) -> None:
        if not self._down:
            log.warning("%s does not answer; work goes on, and its records wait: %s", self._name, _line(error))
        self._down = True

    def _say_up(self) -> None:
        if self._down:
            log.warning("%s answers again", self._name)
        self._down = self._full = False


def _line(error: Exception) -> str:
    text = masked(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
