"""Where the time goes: seconds and FLOPs of the parts of one piece of work.

Timed are calls of the networks, of `torch.rand` and of the tokenizer's decoder; the rest is element-wise work, ordering
and Python. On a GPU events are recorded, and nothing waits between two parts.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import wait

T = TypeVar("T")
DRAWS = "draws"


class Parts:
    """Seconds and FLOPs by part, of the work done inside `measuring`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.calls: dict[str, list[tuple[Any, Any]]] = {}
        self.flops: dict[str, float] = {}
        self.total = self._counting = 0.0
        self._inside = False
        self._known: dict[tuple[Any, ...], float] = {}

    def seconds(self) -> dict[str, float]:
        """Of each part, and of the rest, which is no part."""
        found = {name: sum(map(self._elapsed, calls)) for name, calls in self.calls.items()}
        return found | {"rest": max(0.0, self.total - sum(found.values()))}

    @contextmanager
    def measuring(self, *places: tuple[str, Any, str]) -> Iterator[None]:
        """Time the calls of `owner.attribute` as the part `name`, for each (name, owner, attribute)."""
        with ExitStack() as stack:
            for name, owner, attribute in places:
                stack.enter_context(_replaced(owner, attribute, self._timed(name, getattr(owner, attribute))))
            wait(self.device)
            start = time.perf_counter()
            yield
            wait(self.device)
            self.total = time.perf_counter() - start - self._counting

    def lap(self, name: str, work: Callable[[], T]) -> T:
        """Do `work` as a part."""
        start = self._now()
        found = work()
        self.calls.setdefault(name, []).append((start, self._now()))
        return found

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:  # a part within a part belongs to the outer one
                return call(*args, **kwargs)
            self._inside = True
            try:
                self._count(name, call, args, kwargs)
                return self.lap(name, lambda: call(*args, **kwargs))
            finally:
                self._inside = False

        return timed

    def _count(self, name: str, call: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Add the FLOPs of a call; for shapes that were not seen before it is made once more, which is not timed."""
        if name == DRAWS:
            return
        key = (name, call, *(tuple(a.shape) for a in args if isinstance(a, torch.Tensor)))
        if key not in self._known:
            start = time.perf_counter()
            self._known[key] = flops(lambda: call(*args, **kwargs))
            wait(self.device)
            self._counting += time.perf_counter() - start
        self.flops[name] = self.flops.get(name, 0.0) + self._known[key]

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _elapsed(self, call: tuple[Any, Any]) -> float:
        start, end = call
        return start.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - start


@contextmanager
def _replaced(owner: Any, attribute: str, value: Any) -> Iterator[None]:
    own = attribute in vars(owner)
    before = getattr(owner, attribute)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, attribute, before)
        else:
            delattr(owner, attribute)


def flops(work: Callable[[], object]) -> float:
    """FLOPs of matrix products, convolutions and attention in `work`, forward and backward, counted by torch."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())
