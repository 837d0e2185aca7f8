"""The parts of the evaluation: an error in one does not lose the metrics of the others.

A part that does not apply is left out with a reason. The stage fails with a failure after all metrics are written.
"""

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Generic, TypeVar, cast

from bigr.runtime.distributed import from_process, host_group, rank, together, world
from bigr.runtime.errors import BigrError

log = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_S = 7 * 24 * 3600
"""How long processes wait for what one of them does alone; one that ends is noticed at once."""


class NotApplicable(Exception):
    """Raised within a part that cannot be measured for this model or data; `str()` is the reason."""


class Attempt(Generic[T]):
    """What a piece of work returned, or its exception, which is raised where the result is asked for.

    So what all processes measure together, first, can be part of what the first process reports later.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self.error: Exception | None = None
        try:
            self._value = work()
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # else it would keep what they hold, perhaps a GPU's memory
            self.error = error

    def result(self) -> T:
        """The result. Raises the work's exception."""
        if self.error is not None:
            raise self.error
        return self._value


def at_once(works: Mapping[str, Callable[[], T]]) -> dict[str, Attempt[T]]:
    """What each piece of work returned, or its exception, in every process; one process does it, several at a time.

    For work that cannot be divided, such as a training. The first process does the first piece, the second the second,
    and so on in turn. Results must be picklable, their tensors on the CPU. All processes must call it.
    """
    owners = {name: number % world() for number, name in enumerate(works)}
    mine = {name: Attempt(works[name]) for name, owner in owners.items() if owner == rank()}
    together(lambda: None, host_group(_LONGEST_S))  # all have done theirs, and none has ended
    return {name: _sent(mine.get(name), owner) for name, owner in owners.items()}


def _sent(own: Attempt[T] | None, owner: int) -> Attempt[T]:
    """The attempt of process `owner`; own: it, in that process."""
    kind, message, value = None, "", None
    if own is not None and own.error is None:
        value = own.result()
    elif own is not None:
        kind = next((kind for kind in (NotApplicable, BigrError) if isinstance(own.error, kind)), RuntimeError)
        message = str(own.error) or type(own.error).__name__
    kind, message, value = from_process(owner, (kind, message, value))

    def result() -> T:
        if kind is not None:
            raise kind(f"in another process: {message}" if kind is RuntimeError else message)
        return cast("T", value)

    return Attempt(result) if own is None else own


@dataclass
class Parts:
    """The results of the parts, by name; left_out: part → the reason, in one line; failed:
    part → `reason`, one line, and `traceback`, None for a `BigrError`.
    """

    measured: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, dict[str, str | None]] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Run the block as the part `name`, and record its exception, if any. Ctrl-C and the like are raised."""
        try:
            yield
        except NotApplicable as inapplicable:
            self.leave_out(name, str(inapplicable))
        except BigrError as error:
            self._fail(name, str(error), None)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self._fail(name, reason, traceback.format_exc())
        else:
            self.measured.append(name)

    def leave_out(self, name: str, reason: str) -> None:
        """Record and log that `name` is not measured."""
        self.left_out[name] = reason
        log.info("evaluation: %s is left out: %s", name, reason)

    def check(self, metrics: str, about: str) -> None:
        """Raise `BigrError` if a part failed. metrics, about: the files with the metrics and with the reasons."""
        if not self.failed:
            return
        named = "; ".join(f"{name} ({failure['reason']})" for name, failure in self.failed.items())
        raise BigrError(f"evaluation: failed in {named}. All other metrics are in {metrics}, details in {about}")

    def as_json(self) -> dict[str, object]:
        """The content of evaluation-parts.json."""
        return asdict(self)

    def _fail(self, name: str, reason: str, trace: str | None) -> None:
        reason = " ".join(reason.split())
        reason = reason if len(reason) <= 300 else f"{reason[:299]}…"
        self.failed[name] = {"reason": reason, "traceback": trace}
        log.error("evaluation: %s failed, the other parts continue: %s", name, reason)
