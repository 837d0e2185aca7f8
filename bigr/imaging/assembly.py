"""The networks and settings of an `ImageModel`, from folders."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bigr.imaging.options import Editing
from bigr.interop.belonging import check_pair
from bigr.interop.folders import load_model
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.described import from_values
from bigr.models.masked.generator import BiGR
from bigr.runtime.device import resolve_device
from bigr.runtime.errors import BigrError
from bigr.sampling.unmask import Sampling

PAPER = Sampling(
    iterations=20,
    diffusion_steps=100,
    guidance_scale=2.5,
    guidance_schedule="constant",
    gumbel_temperature=0.17,
    bit_noise=2.5,
)
"""Table 7 of the paper, the model L; bit_noise: of BAR, for the target "mask"."""
PAPER_LARGER = {
    36: replace(PAPER, iterations=25, gumbel_temperature=0.25),
    48: replace(PAPER, iterations=25, gumbel_temperature=0.3),
}
"""The same for XL and XXL, by their layers."""
PAPER_EDITING = Editing(
    guidance_scale=2.5, gumbel_temperature=0.17, feather=0.5, enrich_guidance_scale=10.0, enrich_rounds=1
)
"""Where no settings come with the model: docs/method.md, sections 4 and 5."""
BATCH_SIZE = 16
"""Images that are drawn together, where no settings come with the model."""
SETTINGS_FILE = "generation_config.json"


@dataclass(frozen=True)
class ImageSettings:
    """What an `ImageModel` is made with, besides the networks.

    presets: other ways to sample, by name; editing: None for the paper's; classes: their names, in the order of labels;
    precision: as `run.precision`; knows_labels: whether the model was trained with labels; decode_precision, compile:
    as in the section `run`.
    """

    sampling: Sampling
    presets: Mapping[str, Sampling]
    editing: Editing | None
    classes: Sequence[str]
    precision: str
    batch_size: int
    knows_labels: bool
    decode_precision: str = "float32"
    compile: str = "auto"

    @classmethod
    def of_folder(cls, models: Path, network: BiGR) -> "ImageSettings":
        """Those that `save_pretrained` wrote beside the models; where there are none, the paper's for this many layers.

        Raises `BigrError`.
        """
        path = models / SETTINGS_FILE
        if not path.is_file():
            names = [str(number) for number in range(network.config.num_classes)]
            return cls(PAPER_LARGER.get(network.config.layers, PAPER), {}, None, names, "auto", BATCH_SIZE, True)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            sampling, editing = from_values(Sampling, values.pop("sampling")), Editing(**values.pop("editing"))
            presets = {name: from_values(Sampling, preset) for name, preset in values.pop("presets", {}).items()}
            found = cls(sampling=sampling, presets=presets, editing=editing, **values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BigrError(f"{path}: not the settings of an ImageModel: {error}") from None
        if len(found.classes) != network.config.num_classes:
            raise BigrError(f"{path} names {len(found.classes)} classes; the model has {network.config.num_classes}")
        return found


def load_networks(models: Path, device: str) -> tuple[Tokenizer, BiGR]:
    """The networks in `models/tokenizer` and `models/bigr`, on `device` (as `run.device`).

    Raises `BigrError` where one is missing or damaged, or they do not fit each other.
    """
    where = resolve_device(device)
    tokenizer = load_model(models / "tokenizer", Tokenizer).to(where)
    network = load_model(models / "bigr", BiGR).to(where)
    check_pair(tokenizer, network, (models / "tokenizer", models / "bigr"))
    return tokenizer, network
