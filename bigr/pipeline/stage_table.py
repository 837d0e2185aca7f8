"""The stages, in the order in which they run: the one table of what each is called, where it is, and what it does.

The command line, the runner, the check, the plan and the flow read it. What a stage reads and writes, and by which
settings, is in dvc.yaml (`dvcfile.py`). A stage's name is also that of its section in params.yaml and of its runs in
MLflow.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Stage:
    """One stage: its module in `bigr.stages`, and what it does as the command line says it.

    on_device: it computes on `run.device`; in_processes: in all processes that torchrun has started, the others in one;
    launched: `run.processes` of them are started where torchrun is not called by hand; shares: what of its report the
    parent run of the whole execution shows too.
    """

    module: str
    help: str
    on_device: bool = False
    in_processes: bool = False
    launched: bool = True
    shares: tuple[Literal["metrics", "pictures"], ...] = ()

    @property
    def path(self) -> str:
        """The module's file, relative to the project's folder."""
        return f"bigr/stages/{self.module}.py"


STAGES = {
    "dataset": Stage(
        "write_dataset",
        "Writes the embedded data set that dataset.name chooses to data/dataset/: scikit-learn's 1,797 handwritten "
        "digits as an image folder, or scenes of coloured shapes or emoji, with captions, as parquet files. Your own "
        "images need no such stage: name them in shards.source.",
    ),
    "shards": Stage(
        "pack_shards",
        "Reads the images that shards.source names: a folder, tar or parquet files, IDX files, CIFAR, .npz; here or "
        "at a URL. Crops and resizes every image to shards.image_size, and packs them as webdataset shards in "
        "data/shards/. Images that cannot be decoded are listed in data/shards/report.json.",
        in_processes=True,
        launched=False,
    ),
    "tokenizer": Stage(
        "train_tokenizer",
        "Trains the binary autoencoder on the shards: it turns an image into a grid of tokens of "
        "tokenizer.code_bits bits each, and back. Or takes over the model that tokenizer.from names. Writes "
        "models/tokenizer/.",
        on_device=True,
        in_processes=True,
    ),
    "codes": Stage(
        "encode_codes",
        "Encodes every image of the shards with the tokenizer, once, and writes the bits, packed, to data/codes/: "
        "the later stages train on these alone.",
        on_device=True,
        in_processes=True,
    ),
    "text": Stage(
        "encode_texts",
        "Reads every caption of the shards with the encoder that text.encoder names, once, and writes what the "
        "generator takes in the class's place to data/text/. With text.encoder: none there is nothing to do.",
        on_device=True,
        in_processes=True,
    ),
    "generator": Stage(
        "train_generator",
        "Trains the masked generator on the codes: a bidirectional transformer that predicts masked tokens, "
        "together with its Bernoulli transcoder. Or takes over the model that generator.from names. Writes "
        "models/generator/.",
        on_device=True,
        in_processes=True,
    ),
    "transcoder": Stage(
        "train_transcoder",
        "Trains the transcoder further, or a new one, on the frozen generator, several noise draws for each of "
        "its passes; transcoder.steps: 0 hands the joint one on. Writes the complete model to models/bigr/.",
        on_device=True,
        in_processes=True,
    ),
    "samples": Stage(
        "draw_samples",
        "Draws class-balanced images from the model by unmasking the most certain tokens first, and writes them "
        "as outputs/samples.npz, which ADM's evaluator reads, and as a picture, outputs/samples.png.",
        on_device=True,
        in_processes=True,
        shares=("pictures",),
    ),
    "evaluation": Stage(
        "evaluate_model",
        "Measures samples (Fréchet distance, KID, precision, recall, label agreement), reconstructions, code "
        "usage, every layer's features (linear probe, k-NN, t-SNE), and inpainting, editing, interpolation and "
        "enrichment of held-out images. Writes outputs/metrics.json (`bigr metrics` shows it) and outputs/plots/.",
        on_device=True,
        in_processes=True,
        shares=("metrics", "pictures"),
    ),
}

NAMES = tuple(STAGES)
"""Their names, in order."""
