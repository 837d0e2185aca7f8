"""The parts of the evaluation, each by itself: what one of them runs into does not take the others' metrics with it.

A part that does not apply (one class leaves nothing to edit to) is left out and said so. One that fails is remembered,
the others go on, and the stage that ran them fails once everything that was measured is written.
"""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bigr.runtime.errors import BigrError

log = logging.getLogger(__name__)


class NotApplicable(Exception):
    """Raised within a part that there is no sense in measuring here; `str()` is the reason."""


@dataclass(frozen=True)
class Failure:
    """Why a part failed, in one line; trace: the traceback of what is not the user's mistake, else None."""

    reason: str
    trace: str | None


@dataclass
class Parts:
    """How the parts of an evaluation ended, by name; reasons are one line."""

    measured: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Run what stands below as the part `name`. Ctrl-C and the like pass through; no error does."""
        try:
            yield
        except NotApplicable as inapplicable:
            self.leave_out(name, str(inapplicable))
        except BigrError as error:
            self._fail(name, Failure(_line(str(error)), None))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self._fail(name, Failure(_line(reason), traceback.format_exc()))
        else:
            self.measured.append(name)

    def leave_out(self, name: str, reason: str) -> None:
        """Note and log that `name` is not measured."""
        self.left_out[name] = reason
        log.info("evaluation: %s is left out: %s", name, reason)

    def check(self, metrics: str, about: str) -> None:
        """Raise `BigrError` in one line where a part failed. metrics, about: the files with what is there."""
        if not self.failed:
            return
        named = "; ".join(f"{name} ({failure.reason})" for name, failure in self.failed.items())
        raise BigrError(f"evaluation: failed in {named}. All other metrics are in {metrics}; {about} tells more")

    def as_json(self) -> dict[str, object]:
        """For a file."""
        failed = {name: {"reason": f.reason, "traceback": f.trace} for name, f in self.failed.items()}
        return {"measured": self.measured, "left_out": self.left_out, "failed": failed}

    def _fail(self, name: str, failure: Failure) -> None:
        self.failed[name] = failure
        log.error("evaluation: %s failed, the rest goes on: %s", name, failure.reason)


def _line(text: str) -> str:
    """A message in one line, cut where it is long: libraries write whole pages into theirs."""
    words = " ".join(text.split())
    return words if len(words) <= 300 else f"{words[:299]}…"
