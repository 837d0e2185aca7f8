"""The command line: `python -m benchmarks`."""

from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from bigr.cli.program import let_threads_wait

let_threads_wait()  # as in all commands; torch reads it when it is loaded

from benchmarks import busy, editing, frontier, precision, steps
from benchmarks.frontier import measure, train, tune

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
    device: str = "auto",
    dtype: Annotated[str, typer.Option("--precision", help="float32 or bfloat16; on a GPU bfloat16.")] = "",
    rounds: int = 3,
    alone: Annotated[bool, typer.Option("--alone", help="Leave the published algorithm out.")] = False,
    out: Path = Path("outputs/benchmarks"),
) -> None:
    """Compare this project with the published algorithm, in turns, and write a table, JSON and a plot."""
    if context.invoked_subcommand:
        return
    from dataclasses import replace

    import torch

    from benchmarks import compare, report
    from benchmarks.machine import Machine
    from benchmarks.subjects import Subject
    from bigr.runtime.device import resolve_device

    where = resolve_device(device)
    on_gpu = where.type == "cuda"
    chosen = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype or ("bfloat16" if on_gpu else "float32")]
    machine = Machine.measured(where, chosen)
    typer.echo(str(machine))
    results = []
    for name in (models or ("digits,L,XL" if on_gpu else "digits,L")).split(","):
        subject = Subject.of(name, where)
        changes = {"iterations": iterations, "diffusion_steps": diffusion_steps}
        subject.sampling = replace(subject.sampling, **{key: value for key, value in changes.items() if value})
        for work in works.split(","):
            default = GPU_BATCHES if on_gpu else (100 if work == "sampling" else 32,) if name == "digits" else (1,)
            for size in map(int, batch.split(",")) if batch else default:
                measure = compare.sampling if work == "sampling" else compare.training
                both = not alone and (not on_gpu or size == 64)
                results.append(measure(subject, size, rounds, chosen, both))
                report.write(out, machine, results)
                typer.echo("\n".join(report.lines(machine, results[-1:])[2:]))
    typer.echo("\n".join(report.lines(machine, results)))


def _verbatim(module: ModuleType) -> str:
    """A module's docstring, whose lines stay as they are."""
    return "\b\n" + str(module.__doc__).replace("\n\n", "\n\n\b\n")


frontier_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
app.add_typer(frontier_app, name="frontier", help=_verbatim(frontier))
for group, modules in ((app, (steps, busy, editing, precision)), (frontier_app, (train, tune, measure))):
    for module in modules:
        group.command(module.__name__.split(".")[-1], help=_verbatim(module))(module.main)

app(prog_name="python -m benchmarks")
