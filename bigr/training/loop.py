"""The training loop of every trained stage, in one process or in several.

A stage passes trained modules (each with its optimiser and its loss), a stream of batches, and a validation. The EMA of
the first module is validated and returned. Every draw is derived from the seed, the step and the place in the global
batch, so that a killed run resumes with the same weights: bit for bit in as many processes, up to the rounding of sums
in another number. Dropout inside layers alone is drawn by each process. Losses stay on the device until they are read.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from bigr.runtime.context import Context
from bigr.runtime.distributed import barrier, is_main, mean_over_processes, rank, world
from bigr.runtime.errors import EXIT_STOPPED, BigrError
from bigr.runtime.files import write_csv
from bigr.runtime.paths import is_url, local_path
from bigr.runtime.precision import autocast
from bigr.runtime.progress import Progress
from bigr.runtime.seeds import derive_seed
from bigr.runtime.stop_requests import StoppedOnRequest, StopRequest, stop_requests
from bigr.training.checkpoint_copies import CheckpointCopies, short
from bigr.training.checkpoints import Checkpoint
from bigr.training.optimiser import EMA, learning_rate
from bigr.training.parallel import Sharded, own_gradients, whole
from bigr.training.prefetch import on_device
from bigr.training.recompute import recomputed

if TYPE_CHECKING:
    from bigr.config import RunSettings, TrainingSettings

log = logging.getLogger(__name__)
Batch = TypeVar("Batch", bound=tuple[Tensor, ...])

VALIDATION_IMAGES = 512
"""The most images that a validation during training uses."""
_CHECKPOINTS = "checkpoints"
"""The folder of checkpoints, where `run.checkpoints` is the URL of their copies."""
READ_BACK_EVERY = 20
"""Steps between two reads of the losses on a device that computes asynchronously."""


@dataclass(frozen=True)
class TrainedModule(Generic[Batch]):
    """A module, its optimiser and its loss.

    loss: part of the batch, step and number of the part (both from 0) → scalars by name, means over the part, of which
        "loss" is minimised; None skips the module in this step. With `accumulate: 1` the only part is the batch.
    call: what `loss` calls, of `parallel`; blocks: those of `module`, for `run.activation_checkpointing`.
    """

    name: str
    module: nn.Module
    optimiser: torch.optim.Optimizer
    loss: Callable[[Batch, int, int], Mapping[str, Tensor] | None]
    call: Callable[..., Any]
    blocks: Sequence[nn.Module]


@dataclass(frozen=True)
class TrainingPlan:
    """The stage's name and settings, and those of the run.

    width: channels or features of the widest layers; decides whether bfloat16 pays; compiled: whether torch.compile is
    used, which rounds in its own way.
    """

    stage: str
    settings: "TrainingSettings"
    run: "RunSettings"
    seed: int
    device: torch.device
    width: int
    compiled: bool = False


def train(
    plan: TrainingPlan,
    trained_modules: list[TrainedModule[Batch]],
    batches: Callable[[int], Iterator[Batch]],
    validate: Callable[[nn.Module, int], Mapping[str, float]],
    context: Context,
    describe: Callable[[int], str] = lambda step: "",
    first_row: Mapping[str, float] | None = None,
) -> nn.Module:
    """Train, and return the EMA of the first trained module, on its device, in evaluation mode.

    Of a sharded module the first process returns the whole EMA, on the CPU; only there is the result of use.
    batches: step → the stream from that step on, of named tuples on the CPU; validate: the EMA and the steps done →
    metrics by name, called every `validate_every` steps and at the end, on the first process only, or on all where the
    module is sharded; describe: step →
    words that name its batch, for errors; first_row: metrics from before the training, the curves' row of step 0.
    Writes outputs/curves/<stage>.csv and, while it runs, checkpoints/<stage>/. Reports the rows of that file (mean
    losses since the last row as `train_<name>`, and the validation's metrics) and, every `READ_BACK_EVERY` steps, the
    losses of one step. Raises `BigrError` that names step and batch if a loss is not finite, and `StoppedOnRequest`,
    with a checkpoint written, after the step in which one of the processes was asked to end.
    """
    settings = plan.settings
    if plan.device.type == "cuda":  # CPU kernels are deterministic as they are
        # Not `warn_only`: attention would then take its kernels that add in any order.
        torch.use_deterministic_algorithms(plan.run.deterministic)
    sharded = trained_modules[0].call if isinstance(trained_modules[0].call, Sharded) else None
    ema = EMA(trained_modules[0].module, settings.ema_decay, sharded.copy if sharded else None)
    modules = {each.name: each.module for each in trained_modules} | {"average": ema.module}
    optimisers = {each.name: each.optimiser for each in trained_modules}
    checkpoint = _checkpoint(plan, context)
    nothing_done: dict[str, Any] = {"step": 0, "rows": [first_row] if first_row else [], "losses": []}
    progress = checkpoint.resume(modules, optimisers) or nothing_done
    start, rows = progress["step"], progress["rows"]
    losses = Losses(progress["losses"], start, describe)
    if start:
        log.info("%s: continuing from step %d of %d", plan.stage, start, settings.steps)
    for row in rows if is_main() else []:  # so that this run's record shows the whole curve
        _report(row, context)
    read_back = 1 if plan.device.type == "cpu" else READ_BACK_EVERY
    blocks = [block for each in trained_modules for block in each.blocks] if plan.run.activation_checkpointing else []
    waited = Waited()
    with (
        recomputed(blocks),
        checkpoint,
        stop_requests(plan.run.timeout_s) as stop,
        closing(on_device(batches(start), plan.device)) as stream,
        Progress(plan.stage, settings.steps, initial=start, enabled=is_main()) as bar,
    ):
        for step in range(start, settings.steps):
            with waited.for_("batches"):
                batch = next(stream)
            torch.manual_seed(derive_seed(plan.seed, plan.stage, "dropout", step, rank()))
            rate = learning_rate(settings, step)
            step_losses: dict[str, Tensor] = {}
            for trained_module in trained_modules:
                step_losses |= _update(plan, trained_module, batch, step, rate)
            ema.update(trained_modules[0].module)
            losses.add(step_losses)

            checkpoint.check()
            done = step + 1
            note = ""
            if done % read_back == 0 or done == settings.steps:
                latest = losses.read()
                note = f"loss {latest['loss']:.4f}"
                if is_main() and done % READ_BACK_EVERY == 0:
                    context.report.metrics({**latest, "learning_rate": rate}, step=done)
            if done % settings.validate_every == 0 or done == settings.steps:
                losses.read()
                if is_main() or sharded:
                    with waited.for_("validation"):
                        metrics = validate(ema.module, done)
                if is_main():
                    rows.append({"step": done, **losses.mean(), **metrics})
                    _check_finite(rows[-1], done, describe)
                    _report(rows[-1], context)
                losses.clear()
                barrier()
            stopped = stop.agreed()
            if stopped or (done % plan.run.checkpoint_every == 0 and done < settings.steps):
                losses.read()
                with waited.for_("checkpoints"):
                    checkpoint.save(modules, optimisers, {"step": done, "rows": rows, "losses": losses.window})
            if stopped:
                _stop(plan, checkpoint, done, stop)
            bar.advance(note=note)
        stop.settle()
    if is_main():
        waited.report(plan.stage, context)
        write_curves(context.root / "outputs" / "curves" / f"{plan.stage}.csv", rows)
    return sharded.gathered() if sharded else ema.module


def _stop(plan: TrainingPlan, checkpoint: Checkpoint, done: int, stop: StopRequest) -> NoReturn:
    """End once the checkpoint of the steps `done` is written, in all processes."""
    checkpoint.wait()
    barrier()
    asked = f"by {stop.received.name}" if stop.received else "in another process"
    log.info(
        "%s: asked to end %s after step %d of %d; the checkpoint is written, and the stage continues from it when it "
        "is started again (exit status %d)",
        *(plan.stage, asked, done, plan.settings.steps, EXIT_STOPPED),
    )
    raise StoppedOnRequest


def _report(row: Mapping[str, Any], context: Context) -> None:
    """Report a row of the curves at its step."""
    context.report.metrics({name: value for name, value in row.items() if name != "step"}, step=row["step"])


def forget_checkpoint(plan: TrainingPlan, context: Context) -> None:
    """Delete the checkpoints of a stage whose outputs are written."""
    if is_main():
        checkpoint = _checkpoint(plan, context)
        checkpoint.remove()
        if checkpoint.folder.parent.name == plan.stage:  # it is of this training alone
            checkpoint.folder.rmdir()


def _checkpoint(plan: TrainingPlan, context: Context) -> Checkpoint:
    # Kinds of devices, and compiled code, round differently.
    fingerprint = f"{context.fingerprint} on {plan.device.type}{', compiled' if plan.compiled else ''}"
    where = plan.run.checkpoints
    folder = context.root / (_CHECKPOINTS if is_url(where) else local_path(where)) / plan.stage
    if not is_url(where) and Path(local_path(where)).is_absolute():  # other projects and clones may name it too
        folder /= short(fingerprint)
    copies = CheckpointCopies(where, plan.stage, fingerprint) if is_url(where) else None
    return Checkpoint(folder, fingerprint, plan.run.timeout_s, copies)


def _update(
    plan: TrainingPlan, trained_module: TrainedModule[Batch], batch: Batch, step: int, rate: float
) -> dict[str, Tensor]:
    parts = parts_of(batch, plan.settings.accumulate)
    found: list[dict[str, Tensor]] = []
    trained_module.optimiser.zero_grad(set_to_none=True)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with own_gradients(trained_module.call) if not last else nullcontext():
            with autocast(plan.device, plan.run.precision, plan.width):
                terms = trained_module.loss(part, step, number)
            if terms is None:
                return {}
            (terms["loss"] / len(parts)).backward()
        found.append({name: value.detach() for name, value in terms.items()})
    losses = {name: torch.stack([terms[name] for terms in found]).mean() for name in found[0]}
    parameters = [p for group in trained_module.optimiser.param_groups for p in group["params"]]
    gradient_norm = whole(nn.utils.clip_grad_norm_(parameters, plan.settings.grad_clip))
    for group in trained_module.optimiser.param_groups:
        group["lr"] = rate
    trained_module.optimiser.step()
    prefix = "" if trained_module.name == "model" else f"{trained_module.name}_"
    return {prefix + name: value for name, value in losses.items()} | {prefix + "gradient_norm": gradient_norm}


def parts_of(batch: Batch, count: int) -> list[Batch]:
    """`count` equal parts of a batch, in order: of each of its tensors, along the first dimension."""
    pieces = zip(*(tensor.chunk(count) for tensor in batch), strict=True)
    return [type(batch)(*piece) for piece in pieces]


class Waited:
    """The seconds that the steps waited, by reason. seconds: of each."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("batches", "validation", "checkpoints"), 0.0)

    @contextmanager
    def for_(self, reason: str) -> Iterator[None]:
        """Count the time of the block."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[reason] += time.monotonic() - start

    def report(self, stage: str, context: Context) -> None:
        """Log them, and report each as `waited_for_<reason>_s`."""
        spent = ", ".join(f"{seconds:.1f} s for {reason}" for reason, seconds in self.seconds.items())
        log.info("%s: the steps waited %s", stage, spent)
        context.report.metrics({f"waited_for_{reason}_s": seconds for reason, seconds in self.seconds.items()})


class Losses:
    """The losses of each step since the last row of the curves, on the device until `read`.

    window: losses that are on the host, one dict a step; step: the steps done; describe: as in `train`.
    """

    def __init__(self, window: list[dict[str, float]], step: int, describe: Callable[[int], str]) -> None:
        self.window, self._step, self._describe = window, step, describe
        self._waiting: list[dict[str, Tensor]] = []

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the losses of one step, scalars by name."""
        self._waiting.append(losses)

    def read(self) -> dict[str, float]:
        """Copy all losses to the host in one transfer, as means over the processes; return those of the last step.

        Raises `BigrError` that names the first step with a loss that is not finite.
        """
        if self._waiting:
            of_share = torch.stack([v.float() for losses in self._waiting for v in losses.values()])
            values = iter(mean_over_processes(of_share).tolist())
            for losses in self._waiting:
                row = {name: next(values) for name in losses}
                self._step += 1
                _check_finite(row, self._step, self._describe)
                self.window.append(row)
            self._waiting.clear()
        return self.window[-1] if self.window else {"loss": float("nan")}

    def mean(self) -> dict[str, float]:
        """The mean of each loss over the window, as `train_<name>`."""
        names = dict.fromkeys(name for row in self.window for name in row)
        return {f"train_{n}": sum(v) / len(v) for n in names if (v := [row[n] for row in self.window if n in row])}

    def clear(self) -> None:
        """Start a new window."""
        self.window.clear()


def _check_finite(values: Mapping[str, float], step: int, describe: Callable[[int], str]) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise BigrError(
                f"{name} is {value} at step {step} {describe(step - 1)}".rstrip()
                + "; lower learning_rate or grad_clip, or set run.precision to float32"
            )


def write_untrained(stage: str, metrics: Mapping[str, float], context: Context) -> None:
    """Write and report the metrics of a model that was not trained, as row 0 of outputs/curves/<stage>.csv."""
    write_curves(context.root / "outputs" / "curves" / f"{stage}.csv", [{"step": 0, **metrics}])
    context.report.metrics(metrics)


def write_curves(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows, each with a "step", as CSV; a value that a row lacks is nan, since plots draw an empty cell as 0.

    There is always a column "train_loss", which the plots of dvc.yaml name.
    """
    names = list(dict.fromkeys(["step", "train_loss", *(name for row in rows for name in row)]))
    values = ([row.get(name, math.nan) for name in names] for row in rows)
    write_csv(path, names, ([v if isinstance(v, int) else f"{v:.6g}" for v in row] for row in values))


def check_batch_size(stage: str, settings: "TrainingSettings") -> None:
    """Raise `BigrError` if a global batch cannot be divided evenly among the processes and their parts."""
    if settings.batch_size % (world() * settings.accumulate):
        raise BigrError(
            f"{stage}.batch_size must be a multiple of the {world()} processes × {stage}.accumulate = "
            f"{settings.accumulate}, got {settings.batch_size}"
        )
