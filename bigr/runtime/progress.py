"""Progress: on a terminal a bar with rate and remaining time, in a log a line every few seconds."""

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

log = logging.getLogger(__name__)


class _Bar(tqdm):
    """tqdm's bar, by a clock that nobody sets: by the time of day it would stand still while that is set back."""

    _time = property(lambda self: time.monotonic, lambda self, clock: None)


class Progress:
    """Counts units of work; use as a context manager.

    description: the name of the work, as "tokenizer"; total: units in all, None where unknown; unit: the word
    for one; initial: units done before, by a run that is resumed; every_s: seconds between lines in a log; enabled:
    False in all processes but the first.
    """

    def __init__(
        self,
        description: str,
        total: int | None,
        *,
        unit: str = "step",
        initial: int = 0,
        every_s: float = 5.0,
        enabled: bool = True,
    ) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done, self._initial, self._every_s, self._enabled = initial, initial, every_s, enabled
        self._note, self._told = "", initial
        self._started = self._last = time.monotonic()
        self._bar: tqdm | None = None
        if enabled and sys.stderr.isatty():
            self._bar = _Bar(
                desc=description, total=total, unit=unit, initial=initial, dynamic_ncols=True, mininterval=0.25
            )

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count `units` more as done; `note` (a loss, for example) is shown beside the rate."""
        self.done += units
        self._note = note or self._note
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(units)
        elif self._enabled and time.monotonic() - self._last >= self._every_s:
            self._last = time.monotonic()
            self._line()

    def _line(self) -> None:
        self._told = self.done
        rate = (self.done - self._initial) / max(time.monotonic() - self._started, 1e-9)
        of, left = "", ""
        if self.total is not None:
            of = f"/{self.total}"
            left = f", {_duration((self.total - self.done) / rate if rate > 0 else float('inf'))} left"
        log.info(
            "%s: %d%s %ss, %.1f %ss/s%s%s",
            *(self.description, self.done, of, self.unit, rate, self.unit, left),
            f", {self._note}" if self._note else "",
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._enabled and kind is None and self.done > self._told:
            self._line()


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
