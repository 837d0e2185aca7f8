"""`bigr recipe`: params.yaml as a recipe has it."""

import subprocess
from pathlib import Path
from typing import Annotated

import typer

PARAMS = Path("params.yaml")
RECIPES = Path("recipes")


def recipe(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A recipe, or a file with one.", show_default=False)
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also write over changes of params.yaml that are not in git.")
    ] = False,
) -> None:
    """Write the settings of a recipe to params.yaml, all of them.

    Without a name, list the recipes. `digits` has the settings that params.yaml starts with.
    """
    from bigr.config.recipes import composed, names
    from bigr.runtime.errors import BigrError
    from bigr.runtime.files import write_bytes

    known = names(RECIPES)
    if name is None:
        if not known:
            raise BigrError(f"{RECIPES}: no recipes there; run in the project's folder, or name a file")
        width = max(map(len, known), default=0)
        for each, purpose in known.items():
            typer.echo(f"{each:<{width}}  {purpose}")
        return
    path = RECIPES / f"{name}.yaml" if name in known else Path(name)
    if not path.is_file():
        raise BigrError(f"{name}: no such recipe; name one of {', '.join(known) or 'none'}, or a file")
    text = composed(path)
    if not force and _changed() and PARAMS.read_text(encoding="utf-8") != text:
        raise BigrError(
            f"{PARAMS} has changes that are not in git: commit them, undo them with `git restore {PARAMS}`, or lose "
            "them with --force"
        )
    write_bytes(PARAMS, text.encode())
    typer.echo(f"{PARAMS} holds the settings of {path}; `git diff {PARAMS}` shows what changed")


def _changed() -> bool:
    """Whether there is a params.yaml that git does not hold: changed since the last commit, in none, or without git."""
    if not PARAMS.exists():
        return False
    try:
        found = subprocess.run(["git", "status", "--porcelain", "--", PARAMS], capture_output=True, check=False)
    except FileNotFoundError:
        return True
    return found.returncode != 0 or bool(found.stdout)
