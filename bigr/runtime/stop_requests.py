"""Ending on request: SIGTERM, or SIGUSR1, by which schedulers announce that a job will be stopped.

Work that can go on later asks at safe places whether it should end, saves its state, and raises `StoppedOnRequest`.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from bigr.runtime.distributed import host_group, world
from bigr.runtime.errors import EXIT_STOPPED

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StoppedOnRequest(SystemExit):
    """The work ended on request, and its state is saved; ends the process with `EXIT_STOPPED`."""

    def __init__(self) -> None:
        super().__init__(EXIT_STOPPED)


class StopRequest:
    """Whether one of the processes was asked to end.

    All must ask equally often. Of several processes the answer is that to the question before, so that none waits.
    timeout_s: as in `process_group`.
    """

    def __init__(self, timeout_s: float) -> None:
        self.received: signal.Signals | None = None
        self._group = host_group(timeout_s)
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        """Receive a signal, as a handler."""
        self.received = signal.Signals(number)

    def agreed(self) -> bool:
        """Whether all processes end now; the same in each of them."""
        if world() == 1:
            return self.received is not None
        asked = torch.tensor(int(self.received is not None))
        before, work = self._pending, dist.all_reduce(asked, group=self._group, async_op=True)
        assert work is not None
        self._pending = work, asked
        return before is not None and self._settled(*before)

    def settle(self) -> None:
        """Wait for the last question that is under way: call it in all processes, once the work is done."""
        if self._pending is not None:
            self._settled(*self._pending)
            self._pending = None

    @staticmethod
    def _settled(work: dist.Work, asked: torch.Tensor) -> bool:
        work.wait()
        return bool(asked)


@contextmanager
def stop_requests(timeout_s: float) -> Iterator[StopRequest]:
    """Within the block SIGTERM and SIGUSR1 are noted, and do nothing else. All processes must enter it.

    In a thread that is not the main one, which gets no signals, they are not.
    """
    request = StopRequest(timeout_s)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = [signal.signal(number, request.note) for number in SIGNALS]
    try:
        yield request
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
