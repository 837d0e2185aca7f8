"""The one training loop: every trained stage runs it, in one process or in many.

A stage brings trained modules (each with its optimiser and its loss), a stream of batches, and a validation. The first
one's EMA is what is validated and returned. Every draw is derived from the seed and the step, so that a run that
was killed continues with the same weights, bit for bit. Losses stay on the device until they are looked at.
"""

import csv
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from bigr.runtime.context import Context
from bigr.runtime.distributed import barrier, is_main, rank, world
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_bytes
from bigr.runtime.precision import autocast
from bigr.runtime.progress import Progress
from bigr.runtime.seeds import derive_seed
from bigr.training.checkpoints import Checkpoint
from bigr.training.optimiser import EMA, learning_rate

if TYPE_CHECKING:
    from bigr.config import RunSettings, TrainingSettings

log = logging.getLogger(__name__)
Batch = TypeVar("Batch")

VALIDATION_IMAGES = 512  # at most, behind a point of the curves; the stage evaluation uses every image
READ_BACK_EVERY = 20  # steps between two looks at the losses of a device that computes ahead


@dataclass(frozen=True)
class TrainedModule(Generic[Batch]):
    """One module that learns.

    loss: batch and step (from 0) → named scalars; "loss" is the one that is minimised. None: nothing to learn in this
    step (a discriminator before its first).
    """

    name: str
    module: nn.Module
    optimiser: torch.optim.Optimizer
    loss: Callable[[Batch, int], Mapping[str, Tensor] | None]


@dataclass(frozen=True)
class TrainingPlan:
    """Which run this is: the stage's name and settings, and those of the whole run."""

    stage: str
    settings: "TrainingSettings"
    run: "RunSettings"
    seed: int
    device: torch.device
    width: int
    """Channels or features of the widest layers: decides whether bfloat16 pays."""


def train(
    plan: TrainingPlan,
    trained_modules: list[TrainedModule[Batch]],
    batches: Callable[[int], Iterator[Batch]],
    validate: Callable[[nn.Module, int], Mapping[str, float]],
    context: Context,
    describe: Callable[[int], str] = lambda step: "",
    first_row: Mapping[str, float] | None = None,
) -> nn.Module:
    """Train, and return the EMA of the first trained module, on its device, in eval mode.

    batches: the stream from a given step on; validate: the average and the steps done → named figures, called every
    `validate_every` steps and at the end, on the first process only; describe: names the batch of a step, for errors;
    first_row: figures from before the training, the curves' row of step 0.
    Writes outputs/curves/<stage>.csv and, while it runs, checkpoints/<stage>/. Reported are the curves' rows as they
    are in that file (means since the row before as `train_<name>`, the validation's figures), and now and then one
    step's losses, by their own names.
    Raises `BigrError` with the step and the batch where a loss is not finite.
    """
    settings = plan.settings
    if plan.device.type == "cuda":  # CPU kernels are deterministic as they are
        # Not `warn_only`: attention would then take its kernels that add in any order.
        torch.use_deterministic_algorithms(True)
    average = EMA(trained_modules[0].module, settings.ema_decay)
    modules = {trained_module.name: trained_module.module for trained_module in trained_modules} | {
        "average": average.module
    }
    optimisers = {trained_module.name: trained_module.optimiser for trained_module in trained_modules}
    checkpoint = _checkpoint(plan, context)
    progress = checkpoint.resume(modules, optimisers) or {
        "step": 0,
        "rows": [first_row] if first_row else [],
        "losses": [],
    }
    start, rows = progress["step"], progress["rows"]
    losses = Losses(progress["losses"], start, describe)
    if start:
        log.info("%s: continuing from step %d of %d", plan.stage, start, settings.steps)
    for row in rows if is_main() else []:  # this execution's record shows the whole curve
        _report(row, context)
    read_back = 1 if plan.device.type == "cpu" else READ_BACK_EVERY
    stream = batches(start)
    with Progress(plan.stage, settings.steps, initial=start, enabled=is_main()) as bar:
        for step in range(start, settings.steps):
            batch = next(stream)
            torch.manual_seed(derive_seed(plan.seed, plan.stage, "dropout", step, rank()))
            rate = learning_rate(settings, step)
            found: dict[str, Tensor] = {}
            for trained_module in trained_modules:
                found |= _update(plan, trained_module, batch, step, rate)
            average.update(trained_modules[0].module)
            losses.add(found)

            done = step + 1
            note = ""
            if done % read_back == 0 or done == settings.steps:
                latest = losses.read()
                note = f"loss {latest['loss']:.4f}"
                if is_main() and done % READ_BACK_EVERY == 0:
                    context.report.metrics({**latest, "learning_rate": rate}, step=done)
            if done % settings.validate_every == 0 or done == settings.steps:
                losses.read()
                if is_main():
                    rows.append({"step": done, **losses.mean(), **validate(average.module, done)})
                    _check_finite(rows[-1], done, describe)
                    _report(rows[-1], context)
                losses.clear()
                barrier()
            if done % plan.run.checkpoint_every == 0 and done < settings.steps:
                losses.read()
                if is_main():
                    checkpoint.save(modules, optimisers, {"step": done, "rows": rows, "losses": losses.window})
                barrier()
            bar.advance(note=note)
    if is_main():
        write_curves(context.root / "outputs" / "curves" / f"{plan.stage}.csv", rows)
    return average.module


def _report(row: Mapping[str, Any], context: Context) -> None:
    """Report a row of the curves at its step."""
    context.report.metrics({name: value for name, value in row.items() if name != "step"}, step=row["step"])


def forget_checkpoint(plan: TrainingPlan, context: Context) -> None:
    """Remove the checkpoint of a stage whose outputs are written."""
    if is_main():
        _checkpoint(plan, context).remove()


def _checkpoint(plan: TrainingPlan, context: Context) -> Checkpoint:
    # Draws are derived from the process's number, and kinds of devices round differently: both belong to the run.
    fingerprint = f"{context.fingerprint} on {world()} × {plan.device.type}"
    return Checkpoint(context.root / "checkpoints" / plan.stage, fingerprint)


def _update(
    plan: TrainingPlan, trained_module: TrainedModule[Batch], batch: Batch, step: int, rate: float
) -> dict[str, Tensor]:
    with autocast(plan.device, plan.run.precision, plan.width):
        losses = trained_module.loss(batch, step)
    if losses is None:
        return {}
    trained_module.optimiser.zero_grad(set_to_none=True)
    losses["loss"].backward()
    parameters = [p for group in trained_module.optimiser.param_groups for p in group["params"]]
    gradient_norm = nn.utils.clip_grad_norm_(parameters, plan.settings.grad_clip)
    for group in trained_module.optimiser.param_groups:
        group["lr"] = rate
    trained_module.optimiser.step()
    prefix = "" if trained_module.name == "model" else f"{trained_module.name}_"
    return {prefix + name: value.detach() for name, value in losses.items()} | {prefix + "gradient_norm": gradient_norm}


class Losses:
    """The losses since the last row of the curves: on the device until `read`, which checks that they are finite."""

    def __init__(self, window: list[dict[str, float]], step: int, describe: Callable[[int], str]) -> None:
        self.window, self._step, self._describe = window, step, describe
        self._waiting: list[dict[str, Tensor]] = []

    def add(self, losses: dict[str, Tensor]) -> None:
        """Take one step's named scalars."""
        self._waiting.append(losses)

    def read(self) -> dict[str, float]:
        """Bring the waiting losses to the host in one transfer; returns the last step's.

        Raises `BigrError` naming the first step with a loss that is not finite.
        """
        if self._waiting:
            values = iter(torch.stack([v.float() for losses in self._waiting for v in losses.values()]).tolist())
            for losses in self._waiting:
                row = {name: next(values) for name in losses}
                self._step += 1
                _check_finite(row, self._step, self._describe)
                self.window.append(row)
            self._waiting.clear()
        return self.window[-1] if self.window else {"loss": float("nan")}

    def mean(self) -> dict[str, float]:
        """The mean of each loss over the window, as `train_<name>`: the names alone are those of one step's losses."""
        names = dict.fromkeys(name for row in self.window for name in row)
        return {f"train_{n}": sum(v) / len(v) for n in names if (v := [row[n] for row in self.window if n in row])}

    def clear(self) -> None:
        """Begin a new window."""
        self.window.clear()


def _check_finite(figures: Mapping[str, float], step: int, describe: Callable[[int], str]) -> None:
    for name, value in figures.items():
        if not abs(value) < float("inf"):
            raise BigrError(
                f"{name} is {value} at step {step} {describe(step - 1)}".rstrip()
                + "; lower learning_rate or grad_clip, or set run.precision to float32"
            )


def write_untrained(stage: str, figures: Mapping[str, float], context: Context) -> None:
    """Write and report the figures of a model that was not trained: outputs/curves/<stage>.csv with one row, step 0."""
    write_curves(context.root / "outputs" / "curves" / f"{stage}.csv", [{"step": 0, **figures}])
    context.report.metrics(figures)


def write_curves(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows (with a column "step") as CSV, atomically; what a row lacks is nan: plots draw an empty cell as 0.

    There is a column "train_loss" even where nothing was trained: the plots of dvc.yaml ask for it.
    """
    names = list(dict.fromkeys(["step", "train_loss", *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="nan", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: v if isinstance(v, int) else f"{v:.6g}" for k, v in row.items()} for row in rows)
    write_bytes(path, text.getvalue().encode())


def check_batch_size(stage: str, batch_size: int) -> None:
    """Raise `BigrError` where a global batch cannot be dealt out evenly to the processes."""
    if batch_size % world():
        raise BigrError(f"{stage}.batch_size must be a multiple of the {world()} processes, got {batch_size}")
