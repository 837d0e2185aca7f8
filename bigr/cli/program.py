"""The command line: `bigr check`, `bigr run <stage>`, and the commands of bigr/cli.

An error that the user can correct is one line and exit status 2.
"""

import atexit
import gc
import json
import logging
import os
import signal
import sys
import textwrap
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import bigr
from bigr.cli import (
    app_command,
    data_command,
    evaluate_command,
    images_command,
    lineage_command,
    metrics_command,
    plan_command,
    probe_command,
    promote_command,
    recipe_command,
    serve_command,
    weights_command,
)
from bigr.pipeline.stage_table import STAGES
from bigr.runtime.errors import EXIT_STOPPED, EXIT_USER_ERROR, BigrError
from bigr.runtime.full_disk import full_disk
from bigr.runtime.masking import MaskingFormatter, masked

EXIT_INTERRUPTED = 128 + signal.SIGINT

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}
"""How OpenMP's threads wait; see `let_threads_wait`."""


def _help() -> str:
    stages = (
        textwrap.fill(stage.help, 78, initial_indent=f"  {name:<12}", subsequent_indent=" " * 14)
        for name, stage in STAGES.items()
    )
    return "\n\n".join(
        [
            "BiGR: image generation and visual representation from binary latent codes.",
            "\b\n`dvc repro` runs the whole pipeline, stage by stage, and only what is out of date.\n"
            "The settings are in params.yaml, a section per stage. The stages, in order:",
            *(f"\b\n{stage}" for stage in stages),
        ]
    )


app = typer.Typer(
    help=_help(),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
Params = Annotated[Path, typer.Option("--params", metavar="FILE", help="The settings.", show_default=True)]


@app.command()
def run(
    stage: Annotated[str, typer.Argument(help="Its name, as `bigr --help` lists them.", show_default=False)],
    params: Params = Path("params.yaml"),
) -> None:
    """Run one stage in this folder, as DVC does.

    Its inputs must be there. Killed or interrupted, a training continues from its last checkpoint when it is run again.
    On SIGTERM or SIGUSR1 it finishes the step, writes a checkpoint, and ends with exit status 75.
    """
    from bigr.pipeline.parent import end_with_starter
    from bigr.pipeline.processes import hand_up_stop
    from bigr.pipeline.runner import run_stage

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    end_with_starter()
    try:
        run_stage(stage, Path.cwd(), params)
    except SystemExit as end:
        if end.code == EXIT_STOPPED:
            hand_up_stop()
        raise
    except KeyboardInterrupt:
        typer.echo("interrupted; `dvc repro` continues from the last checkpoint", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


@app.command()
def check(params: Params = Path("params.yaml")) -> None:
    """Find what would stop a stage, without running any.

    Says what the settings amount to.

    Looks at the settings, dvc.yaml, the files that the settings name, and how many images there are; opens no image.
    """
    from bigr.pipeline.check import summary

    for line in summary(Path.cwd(), params):
        typer.echo(line)


@app.command()
def schema() -> None:
    """Print the JSON schema of params.yaml, for editors."""
    from bigr.config import Settings

    typer.echo(json.dumps(Settings.model_json_schema(), indent=2))


app.command("import")(weights_command.import_)
for command in (
    weights_command.export,
    recipe_command.recipe,
    plan_command.plan,
    evaluate_command.evaluate,
    metrics_command.metrics,
    lineage_command.lineage,
    promote_command.promote,
    data_command.data,
    probe_command.probe,
    *images_command.COMMANDS,
):
    app.command()(command)
app.command("app")(app_command.serve)
app.command()(serve_command.serve)


def main() -> NoReturn:
    """The entry point. Exit status 2: an error that the user can correct, printed in one line on stderr."""
    let_threads_wait()
    _use_code_at_hand()
    _set_up_logging()
    atexit.register(gc.freeze)  # else the interpreter takes a second at its end to look for cycles in what was loaded
    try:
        app(prog_name="bigr")
    except Exception as error:
        from bigr.pipeline.processes import hand_up

        if not isinstance(error, BigrError):
            if (problem := full_disk(error, Path.cwd())) is None:
                raise
            error = BigrError(problem)
        if not hand_up(error):
            typer.echo(masked(str(error)), err=True)
        sys.exit(EXIT_USER_ERROR)
    sys.exit(0)


def let_threads_wait() -> None:
    """Set how OpenMP's threads wait for each other, where the user has not. Call it before torch is imported.

    By default they spin for milliseconds, so that every operation waits where another process takes a thread's core.
    GNU's OpenMP, which torch uses on Linux, is told to spin for some tens of microseconds (benchmarks/busy.py).
    """
    if not WAITING.keys() & os.environ.keys():
        os.environ.update(WAITING)


def _use_code_at_hand() -> None:
    """In a copy of the project, as DVC makes for an experiment, run the copy's code, which DVC has hashed."""
    here = Path.cwd()
    code = here / "bigr" / "__init__.py"
    if (here / "dvc.yaml").is_file() and code.is_file() and not code.samefile(str(bigr.__file__)):
        path = os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH")]))
        os.execve(sys.executable, [sys.executable, "-m", "bigr", *sys.argv[1:]], {**os.environ, "PYTHONPATH": path})


def _set_up_logging() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(MaskingFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler])
    first = os.environ.get("RANK", "0") == "0"
    logging.getLogger("bigr").setLevel(logging.INFO if first else logging.WARNING)
