"""The command line: `bigr check`, `bigr run <stage>`, the commands of bigr/commands.

What a user can put right is one line and exit status 2.
"""

import logging
import os
import signal
import sys
import textwrap
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import bigr
from bigr.commands import app as app_command
from bigr.commands import evaluate, images, lineage, metrics, plan, probe, promote, serve, weights
from bigr.errors import EXIT_USER_ERROR, BigrError
from bigr.masking import MaskingFormatter, masked

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}
"""How OpenMP's threads wait: `let_threads_wait`."""

STAGE_HELP = {
    "digits": (
        "Writes the embedded data set, scikit-learn's 1,797 handwritten digits, as an ordinary image folder "
        "data/digits/{train,val}/<class>/ at the size that digits.image_size says. Your own images need no "
        "such stage: name their folder in shards.source."
    ),
    "shards": (
        "Reads the image folder shards.source, whatever its formats, crops and resizes every image to "
        "shards.image_size, and packs them as webdataset shards in data/shards/. Images that cannot be "
        "decoded are listed in data/shards/report.json."
    ),
    "tokenizer": (
        "Trains the binary autoencoder on the shards: it turns an image into a grid of tokens of "
        "tokenizer.code_bits bits each, and back. Or takes over the model that tokenizer.from names. Writes "
        "models/tokenizer/."
    ),
    "codes": (
        "Encodes every image of the shards with the tokenizer, once, and writes the bits, packed, to "
        "data/codes/: the later stages train on these alone."
    ),
    "generator": (
        "Trains the masked generator on the codes: a bidirectional transformer that predicts masked tokens, "
        "together with its Bernoulli transcoder. Or takes over the model that generator.from names. Writes "
        "models/generator/."
    ),
    "transcoder": (
        "Trains the transcoder further, or a new one, on the frozen generator, several noise draws for each "
        "of its passes; transcoder.steps: 0 hands the joint one on. Writes the complete model to "
        "models/bigr/."
    ),
    "samples": (
        "Draws class-balanced images from the model by unmasking the most certain tokens first, and writes "
        "them as outputs/samples.npz, which ADM's evaluator reads, and as a picture, outputs/samples.png."
    ),
    "evaluation": (
        "Measures samples (Fréchet distance, KID, precision, recall, label agreement), reconstructions, "
        "code usage, every layer's features (linear probe, k-NN, t-SNE), and inpainting, editing, interpolation "
        "and enrichment of held-out images. Writes outputs/metrics.json (`bigr metrics` shows it) and outputs/plots/."
    ),
}
"""What each stage does, in the order in which they run."""


def _help() -> str:
    stages = (
        textwrap.fill(text, 78, initial_indent=f"  {name:<12}", subsequent_indent=" " * 14)
        for name, text in STAGE_HELP.items()
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
    """
    from bigr.runner import run_stage

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_TERMINATED))
    try:
        run_stage(stage, Path.cwd(), params)
    except KeyboardInterrupt:
        typer.echo("interrupted; `dvc repro` continues from the last checkpoint", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


@app.command()
def check(params: Params = Path("params.yaml")) -> None:
    """Find what would stop a stage, without running any.

    Says what the settings amount to.

    Looks at the settings, dvc.yaml, the files that the settings name, and how many images there are; opens no image.
    """
    from bigr.check import summary

    for line in summary(Path.cwd(), params):
        typer.echo(line)


weights.register(app)
plan.register(app)
evaluate.register(app)
metrics.register(app)
lineage.register(app)
promote.register(app)
probe.register(app)
images.register(app)
app_command.register(app)
serve.register(app)


def main() -> NoReturn:
    """The entry point. Exit status 2: a mistake that the user can put right, said in one line on stderr."""
    let_threads_wait()
    _use_code_at_hand()
    _set_up_logging()
    try:
        app(prog_name="bigr")
    except BigrError as error:
        from bigr.runner import hand_up

        if not hand_up(error):
            typer.echo(masked(str(error)), err=True)
        sys.exit(EXIT_USER_ERROR)
    sys.exit(0)


def let_threads_wait() -> None:
    """Before torch is loaded: how OpenMP's threads wait for each other, unless the user says otherwise.

    By default they spin for milliseconds, and one other busy process on the machine, which takes the core of one of
    them away, makes every operation wait for it. Asleep at once, they take longer to wake than a small operation takes.
    So GNU's, which torch brings on Linux, spin for some tens of microseconds first (benchmarks/busy.py).
    """
    if not WAITING.keys() & os.environ.keys():
        os.environ.update(WAITING)


def _use_code_at_hand() -> None:
    """In a copy of the project (one that DVC makes for an experiment, say) run the copy's code: DVC hashed that."""
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
