"""`bigr promote`: let the finished pipeline's model compete for the alias `champion`."""

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bigr.pipeline.promotion import Decision
    from bigr.tracking.registry.gate import GateRow

EXIT_NOT_PROMOTED = 3
WIDTH = 100


def promote(
    params: Annotated[Path, typer.Option("--params", metavar="FILE", help="The settings.")] = Path("params.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="For machines: one line.")] = False,
) -> None:
    """Let the newest model compete with the champion.

    The model that `dvc repro` made is registered, and becomes the champion where it passes. The metrics, tolerances and
    limits are in the section `promotion` of the settings. A champion that was measured on other images, or with another
    extractor, is first measured again. A model that was measured with fewer samples than the champion is not promoted.
    Exit status 0: the model is the champion; 3: it is not, and the last line names the reason.
    """
    from bigr.pipeline.promotion import promote as compare_and_move

    decision = compare_and_move(Path.cwd(), params)
    for line in [json.dumps(decision.as_json(), ensure_ascii=False)] if as_json else page(decision):
        typer.echo(line)
    if not decision.is_champion:
        raise typer.Exit(EXIT_NOT_PROMOTED)


def page(decision: "Decision") -> list[str]:
    """The comparison as lines of text, the decision last."""
    lines = []
    if decision.rows:
        head = ("metric", "champion", "challenger", "at worst", "verdict")
        table = [head, *(_cells(row) for row in decision.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(_aligned(cells, widths)).rstrip() for cells in table]
        lines.append("")
    if decision.measured_again:
        lines += textwrap.wrap(decision.measured_again, WIDTH)
    return [*lines, decision.summary]


def _cells(row: "GateRow") -> tuple[str, ...]:
    numbers = (row.champion, row.challenger, row.worst)
    return (row.name, *("—" if value is None else f"{value:.4g}" for value in numbers), row.verdict)


def _aligned(cells: tuple[str, ...], widths: list[int]) -> list[str]:
    name, *numbers, verdict = cells
    middle = [text.rjust(width) for text, width in zip(numbers, widths[1:-1], strict=True)]
    return [name.ljust(widths[0]), *middle, verdict]
