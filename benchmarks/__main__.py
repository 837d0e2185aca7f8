"""The command line: `python -m benchmarks`."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from bigr.cli.program import let_threads_wait

let_threads_wait()  # as in all commands; torch reads it when it is loaded

from benchmarks import busy, editing, evaluation, frontier, precision, sources, steps
from benchmarks.frontier import measure, train, tune

if TYPE_CHECKING:
    from benchmarks.machine import Machine

app = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None, invoke_without_command=True)
GPU_BATCHES = (1, 16, 64, 256)


@app.callback()
def compare(
    context: typer.Context,
    models: Annotated[str, typer.Option(help="Of digits, L, XL, XXL; by default digits and L, on a GPU also XL.")] = "",
    works: Annotated[str, typer.Option(help="sampling, training, or both.")] = "sampling,training",
    batch: Annotated[
        str, typer.Option(help="Images together; by default 100 of the digits and 1 of L; GPU: several.")
    ] = "",
    iterations: Annotated[int | None, typer.Option(help="n in place of the settings'.")] = None,
    diffusion_steps: Annotated[int | None, typer.Option(help="S in place of the settings'.")] = None,
    target: Annotated[
        str,
        typer.Option(help="Of this project's transcoder; the published one predicts the flip."),
    ] = "",
    preset: Annotated[str | None, typer.Option(help="This project samples by it, the published one does not.")] = None,
    device: str = "auto",
    dtype: Annotated[str, typer.Option("--precision", help="float32 or bfloat16; on a GPU bfloat16.")] = "",
    rounds: Annotated[int | None, typer.Option(help="By default 3, on a GPU 1.")] = None,
    minutes: Annotated[float, typer.Option(help="On a GPU: leave out what would not end within so many minutes.")] = 10,
    alone: Annotated[bool, typer.Option("--alone", help="Leave the published algorithm out.")] = False,
    out: Path = Path("outputs/benchmarks"),
) -> None:
    """Compare this project with the published algorithm, in turns, and write a table, JSON and a plot."""
    if context.invoked_subcommand:
        return
    import time
    from dataclasses import replace

    import torch

    from benchmarks import compare, report
    from benchmarks.machine import Machine
    from benchmarks.subjects import Subject
    from bigr.config.settings import Target
    from bigr.runtime.device import resolve_device
    from bigr.sampling.unmask import Sampling

    if target and target not in (known := get_args(Target)):
        raise typer.BadParameter(f"{target}; there are {', '.join(known)}", param_hint="--target")
    ends = time.monotonic() + 60 * minutes
    where = resolve_device(device)
    on_gpu = where.type == "cuda"
    rounds = rounds or (1 if on_gpu else 3)
    chosen = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype or ("bfloat16" if on_gpu else "float32")]
    machine = Machine.measured(where, chosen)
    typer.echo(str(machine))
    results = []
    for name in (models or ("digits,L,XL" if on_gpu else "digits,L")).split(","):
        subject = Subject.of(name, where, target=target)
        if preset or target:
            subject.published = subject.sampling
        if preset:
            sections = subject.settings.samples.by_preset
            if preset not in sections:
                raise typer.BadParameter(f"{preset}; there are {', '.join(sections)}", param_hint="--preset")
            subject.sampling = Sampling.of(sections[preset])
        changes = {"iterations": iterations, "diffusion_steps": diffusion_steps}
        subject.sampling = replace(subject.sampling, **{key: value for key, value in changes.items() if value})
        for work in works.split(","):
            default = GPU_BATCHES if on_gpu else (100 if work == "sampling" else 32,) if name == "digits" else (1,)
            for size in map(int, batch.split(",")) if batch else default:
                measure = compare.sampling if work == "sampling" else compare.training
                both = not alone and (not on_gpu or size == 64)
                brief = on_gpu and work == "sampling" and size > 64
                if on_gpu and work == "sampling":
                    flops = compare.sampling_flops(subject, size)
                    if time.monotonic() + estimated_seconds(flops, machine, rounds, both, brief) > ends:
                        typer.echo(f"{name}, sampling, batch {size}: left out, it would not end in time (--minutes)")
                        continue
                try:
                    found = measure(subject, size, rounds, chosen, both, brief)
                except torch.OutOfMemoryError:
                    typer.echo(f"{name}, {work}, batch {size}: left out, it does not fit into the GPU's memory")
                    continue
                results.append(found)
                report.write(out, machine, results)
                typer.echo("\n".join(report.lines(machine, results[-1:])[2:]))
    typer.echo("\n".join(report.lines(machine, results)))


GPU_SHARE = 0.3
"""The share of a matrix product's rate at which a GPU is taken to sample, to estimate a row's time."""


def estimated_seconds(flops: float, machine: "Machine", rounds: int, both: bool, brief: bool) -> float:
    """Of a row of sampling on a GPU, whose batch takes so many FLOPs; both, brief: as in `compare.sampling`.

    A round samples with `run.compile` auto and off, and the published algorithm at 1.6 times the FLOPs; beside the
    rounds are two first calls, and one by parts.
    """
    calls = rounds if brief else 3 + (2 + 1.6 * both) * rounds
    return calls * flops / (GPU_SHARE * machine.tflops * 1e12)


def _verbatim(module: ModuleType) -> str:
    """A module's docstring, whose lines stay as they are."""
    return "\b\n" + str(module.__doc__).replace("\n\n", "\n\n\b\n")


frontier_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
app.add_typer(frontier_app, name="frontier", help=_verbatim(frontier))
for group, modules in (
    (app, (steps, busy, editing, precision, sources, evaluation)),
    (frontier_app, (train, tune, measure)),
):
    for module in modules:
        group.command(module.__name__.split(".")[-1], help=_verbatim(module))(module.main)

app(prog_name="python -m benchmarks")
