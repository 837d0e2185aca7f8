"""`bigr plan`: what a params.yaml will cost."""

import json
from pathlib import Path
from typing import Annotated

import typer


def plan(
    params: Annotated[Path, typer.Argument(metavar="PARAMS", help="The settings.")] = Path("params.yaml"),
    tflops: Annotated[
        float | None, typer.Option(metavar="X", help="TFLOP/s that one device sustains; else measured here.")
    ] = None,
    float32_tflops: Annotated[
        float | None,
        typer.Option(metavar="X", help="The same in float32: codes, decoding, evaluation."),
    ] = None,
    images: Annotated[
        int | None, typer.Option(metavar="N", help="Images, of both splits; else counted where they are.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(metavar="C", help="Classes; else counted where the images are, or 1,000.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(metavar="P", help="In place of run.processes: for torchrun on many machines.")
    ] = None,
    parallel: Annotated[
        str | None, typer.Option(metavar="MODE", help="ddp or fsdp, in place of run.parallel: memory of each process.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: FLOPs, bytes, seconds.")] = False,
) -> None:
    """Show what the settings will cost, without training or data.

    Parameters, FLOPs, memory, disk, time.
    """
    from bigr.pipeline.planning.plan import make_plan
    from bigr.pipeline.planning.plan_page import page

    made = make_plan(
        params,
        Path.cwd(),
        tflops=tflops,
        float32_tflops=float32_tflops,
        images=images,
        classes=classes,
        processes=processes,
        parallel=parallel,
    )
    for line in [json.dumps(made.as_json(), indent=2, ensure_ascii=False)] if as_json else page(made):
        typer.echo(line)
