"""`bigr lineage`: where an artifact comes from."""

import json
from pathlib import Path
from typing import Annotated

import typer


def lineage(
    artifact: Annotated[
        str,
        typer.Argument(
            metavar="ARTIFACT",
            help="A file or folder of the pipeline, or a copy of one anywhere; md5:HASH; the id of a run in MLflow; "
            "models:/bigr@champion.",
            show_default=False,
        ),
    ],
    rev: Annotated[
        str | None,
        typer.Option(metavar="REVISION", help="Of git, or an experiment of DVC: the artifact as its dvc.lock has it."),
    ] = None,
    code: Annotated[
        bool, typer.Option("--code", help="List the code that was not as in the commit, or has changed since.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: whole hashes, all code.")] = False,
) -> None:
    """Show what an artifact was made from, back to the raw images.

    With settings, commits and runs of each step.
    """
    from bigr.pipeline.lineage import chain, chain_page

    root = Path.cwd()
    traced = chain.trace(root, artifact, rev)
    if as_json:
        typer.echo(json.dumps(chain_page.as_json(traced, root), indent=2, ensure_ascii=False))
        return
    for line in chain_page.tree(traced, root, code=code):
        typer.echo(line)
