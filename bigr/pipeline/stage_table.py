"""The stages, in the order in which they run: what each is called, where it is, and what it does.

What a stage reads and writes, and by which settings, is in dvc.yaml (`dvcfile.py`). A stage's name is also that of its
section in params.yaml and of its runs in MLflow.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Stage:
    """One stage: its module in `bigr.stages`, and what it does as the command line says it.

    on_device: it computes on `run.device`; in_processes: in `run.processes` processes, the others in one; shares: what
    of its report the parent run of the whole execution shows too.
    """

    module: str
    help: str
    on_device: bool = False
    in_processes: bool = False
    shares: tuple[Literal["metrics", "pictures"], ...] = ()

    @property
    def path(self) -> str:
        """The module's file, relative to the project's folder."""
        return f"bigr/stages/{self.module}.py"


STAGES = {
    "digits": Stage(
        "write_digits",
        "Writes the embedded data set, scikit-learn's 1,797 handwritten digits, as the image folder data/digits/. "
        "Your own images need no such stage: name their folder in shards.source.",
    ),
    "shards": Stage(
        "pack_shards",
        "Crops and resizes every image of the folder shards.source to shards.image_size, and packs them as webdataset "
        "shards in data/shards/. Images that cannot be decoded are listed in data/shards/report.json.",
    ),
    "tokenizer": Stage(
        "train_tokenizer",
        "Trains the binary autoencoder, which turns an image into a grid of tokens of tokenizer.code_bits bits, or "
        "takes over the model that tokenizer.from names. Writes models/tokenizer/.",
        on_device=True,
        in_processes=True,
    ),
    "codes": Stage(
        "encode_codes",
        "Encodes every image of the shards once, and writes the bits to data/codes/: later stages train on these.",
        on_device=True,
        in_processes=True,
    ),
    "generator": Stage(
        "train_generator",
        "Trains the bidirectional transformer that predicts masked tokens, with its Bernoulli transcoder, or takes "
        "over the model that generator.from names. Writes models/generator/.",
        on_device=True,
        in_processes=True,
    ),
    "transcoder": Stage(
        "train_transcoder",
        "Trains the transcoder further, or a new one, on the frozen generator; transcoder.steps: 0 hands the joint one "
        "on. Writes the complete model to models/bigr/.",
        on_device=True,
        in_processes=True,
    ),
    "samples": Stage(
        "draw_samples",
        "Draws class-balanced images, and writes them as outputs/samples.npz, which ADM's evaluator reads, and as a "
        "picture, outputs/samples.png.",
        on_device=True,
        in_processes=True,
        shares=("pictures",),
    ),
    "evaluation": Stage(
        "evaluate_model",
        "Measures samples, reconstructions, code usage, every layer's features, and inpainting, editing, interpolation "
        "and enrichment of held-out images. Writes outputs/metrics.json (`bigr metrics` shows it) and outputs/plots/.",
        on_device=True,
        shares=("metrics", "pictures"),
    ),
}

NAMES = tuple(STAGES)
"""Their names, in order."""
