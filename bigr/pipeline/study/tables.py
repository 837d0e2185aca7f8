"""The study as data: tables 2, 3, 4, 8, figure 3 and sizes of the paper (docs/method.md, section 8), and newer ideas.

A `Variant` is a choice of settings; a `StudyRun` is a variant under one seed, one experiment of DVC. Variants of the
same `model` differ in sampling alone and share everything up to the trained model; all variants of a seed share the
tokenizer and the codes. A seed is that of the whole pipeline, the tokenizer's training included, so that the deviation
over seeds covers everything that is drawn. The variant `base` is in every table.

Per seed: one tokenizer, 8 trainings of a generator (flip, x0, direct, mask, without labels, with flipped input, and two
larger ones), and one sampling with its evaluation for each variant.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigr.pipeline import dvcfile
from bigr.runtime.paths import is_code

SEEDS = tuple(range(6))
"""Six: where all six agree, chance would do so in 3 of 100 studies."""

MINIATURE: dict[str, Any] = {
    "generator.dim": 64,
    "generator.layers": 4,
    "generator.transcoder_dim": 64,
    "generator.steps": 1000,
    "transcoder.steps": 0,
    "samples.preset": None,
    "samples.count": 1000,
    "samples.iterations": 12,
    "samples.diffusion_steps": 30,
    "samples.guidance_schedule": "linear",
    "samples.temperature": 1.0,
    "samples.gumbel_temperature": 1.2,
    "evaluation.kid_subset_size": 200,
    "evaluation.classifier_steps": 300,
    "evaluation.probe_epochs": 100,
    "evaluation.tsne_images": 100,
    "evaluation.zero_shot_images": 0,
}
"""How every run differs from params.yaml: a smaller model, a shorter training, the paper's joint transcoder, more
diffusion steps, a cheaper evaluation. `base` is the point (n, S) of figure 3 that is named here."""

FID, TOP1 = "samples.fd_classifier", "probe.best_top1"
"""The metrics of outputs/metrics.json in place of the paper's FID and linear probe."""
AGREEMENT = "samples.label_agreement"

ITERATIONS, STEPS = (4, 8, 12), (5, 30)
"""Figure 3: n and S."""

TIMED_IMAGES, TIMED_ROUNDS = 50, 3
"""Figure 3's times: images in a batch, and rounds of which the fastest counts."""


@dataclass(frozen=True)
class Variant:
    """name: in names of runs; model: the variants that share one trained model; settings: dotted key → value."""

    name: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyRun:
    """A variant under one seed; settings: all that differs from params.yaml."""

    variant: Variant
    seed: int
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the experiment and of the run in MLflow."""
        return f"ablations-{self.variant.name}-seed{self.seed}"


@dataclass(frozen=True)
class TableRow:
    """A row of a table: its label, the variant, and the paper's value in each of the table's columns."""

    label: str
    variant: Variant
    paper: tuple[float | None, ...]


@dataclass(frozen=True)
class Table:
    """A table of the paper, or of newer ideas. columns: keys of metrics.json, FID, AGREEMENT or TOP1."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


def point(iterations: int, steps: int) -> str:
    """The name of the variant at a point of figure 3."""
    own = (MINIATURE["samples.iterations"], MINIATURE["samples.diffusion_steps"])
    return "base" if (iterations, steps) == own else f"figure3-n{iterations}-S{steps}"


POINTS = {(n, s): point(n, s) for s in STEPS for n in ITERATIONS}
"""Figure 3: (n, S) → variant."""

BASE = Variant("base", "flip")
_DIRECT = Variant("table2-direct", "direct", {"generator.target": "direct"})
_X0 = Variant("table2-x0", "x0", {"generator.target": "x0"})
_MASK = Variant("table2-mask", "mask", {"generator.target": "mask", "samples.diffusion_steps": 4})
_RASTER = Variant("table3-raster", "flip", {"samples.order": "raster"})
_RANDOM = Variant("table3-random", "flip", {"samples.order": "random"})
_CALM = Variant("table3-entropy-calm", "flip", {"samples.gumbel_temperature": 0.17})
_MARGIN = Variant("table3-margin", "flip", {"samples.order": "margin"})
_UNLABELLED = Variant("table4-unlabelled", "unlabelled", {"generator.use_labels": False, "samples.guidance_scale": 1.0})
_THRESHOLDED = Variant("table8-thresholded", "flip", {"samples.deterministic_bits": True})

_HALTON = Variant("order-halton", "flip", {"samples.order": "halton"})
_UNGUIDED = Variant("guidance-none", "flip", {"samples.guidance_scale": 1.0})
_CONSTANT = Variant("guidance-constant", "flip", {"samples.guidance_schedule": "constant"})
_COSINE = Variant("guidance-cosine", "flip", {"samples.guidance_schedule": "cosine"})
_LATE = Variant("guidance-late", "flip", {"samples.guidance_start": 0.5})
_FLIPPED = Variant("input-flip", "input-flip", {"generator.input_flip": 0.1})


def _size(millions: str, dim: int, layers: int) -> Variant:
    model = {"generator.dim": dim, "generator.layers": layers, "generator.transcoder_dim": dim}
    return Variant(f"size-{millions}M", f"size-{millions}M", model)


SIZES = {0.32: BASE, 1.58: _size("1.6", 128, 6), 5.24: _size("5.2", 192, 10)}
"""Scalability: millions of parameters of the generator and its transcoder → variant."""

TABLES = (
    Table(
        "Sizes",
        "the size of the generator, at the same number of steps",
        (FID, AGREEMENT, TOP1),
        tuple(
            TableRow(f"{millions:g} M parameters (in the paper {paper})", variant, (fid, None, None))
            for (millions, variant), (paper, fid) in zip(
                SIZES.items(), (("L, 336 M", 2.71), ("XL, 799 M", 2.49), ("XXL, 1,480 M", 2.36)), strict=True
            )
        ),
    ),
    Table(
        "Table 2",
        "what the transcoder predicts",
        (FID, TOP1),
        (
            TableRow("direct BCE, no diffusion", _DIRECT, (5.84, 63.3)),
            TableRow("diffusion, predicts x₀", _X0, (4.39, 62.0)),
            TableRow("diffusion, predicts the flip", BASE, (3.17, 64.3)),
            TableRow("masked bits, 4 steps (not in the paper)", _MASK, (None, None)),
        ),
    ),
    Table(
        "Table 3",
        "the order in which tokens are fixed",
        (FID,),
        (
            TableRow("raster", _RASTER, (4.51,)),
            TableRow("random", _RANDOM, (7.12,)),
            TableRow("entropy", BASE, (3.17,)),
            TableRow("entropy, Gumbel temperature 0.17 (the paper's for L)", _CALM, (None,)),
            TableRow("margin (the published code's certainty)", _MARGIN, (None,)),
            TableRow("Halton (arXiv 2503.17076)", _HALTON, (None,)),
        ),
    ),
    Table(
        "Table 4",
        "the representation, trained with labels or without",
        (TOP1,),
        (TableRow("with labels", BASE, (67.5,)), TableRow("without labels", _UNLABELLED, (68.3,))),
    ),
    Table(
        "Table 8",
        "bits thresholded or drawn",
        (FID,),
        (TableRow("thresholded", _THRESHOLDED, (3.19,)), TableRow("drawn", BASE, (3.17,))),
    ),
    Table(
        "Guidance",
        "its scale over the iterations (not in the paper)",
        (FID, AGREEMENT),
        (
            TableRow("linear, up to 1.5", BASE, (None, None)),
            TableRow("none", _UNGUIDED, (None, None)),
            TableRow("constant, 1.5", _CONSTANT, (None, None)),
            TableRow("cosine, up to 1.5", _COSINE, (None, None)),
            TableRow("linear, in the second half of the iterations", _LATE, (None, None)),
        ),
    ),
    Table(
        "Input",
        "a tenth of the visible bits flipped in training (not in the paper)",
        (FID, AGREEMENT, TOP1),
        (TableRow("as they are", BASE, (None, None, None)), TableRow("flipped", _FLIPPED, (None, None, None))),
    ),
)

_FIGURE_3 = [
    Variant(name, "flip", {"samples.iterations": n, "samples.diffusion_steps": s})
    for (n, s), name in POINTS.items()
    if name != BASE.name
]
VARIANTS = tuple(
    {v.name: v for v in [BASE, *(row.variant for table in TABLES for row in table.rows), *_FIGURE_3]}.values()
)
"""Every variant of a table or of figure 3, once."""


def tables_of(variant: str) -> list[str]:
    """The tables and figures that have a variant."""
    found = [table.name for table in TABLES if any(row.variant.name == variant for row in table.rows)]
    return [*found, "Figure 3"] if variant in POINTS.values() else found


def runs(
    seeds: tuple[int, ...] = SEEDS,
    variants: tuple[Variant, ...] = VARIANTS,
    miniature: Mapping[str, Any] = MINIATURE,
) -> list[StudyRun]:
    """Every run of the study, grouped by seed and model."""
    models = list(dict.fromkeys(variant.model for variant in variants))
    order = sorted(variants, key=lambda variant: models.index(variant.model))
    return [StudyRun(v, seed, {**miniature, "seed": seed, **v.settings}) for seed in seeds for v in order]


def digest(root: Path, values: Mapping[str, Any]) -> str:
    """SHA-256 of everything that a run's result depends on: the code of every stage, and the settings in dvc.yaml.

    The images are the embedded ones and not part of it. values: the run's complete settings.
    """
    specs = dvcfile.stages(root, values).values()
    code = sorted({dep for spec in specs for dep in spec.deps if is_code(dep)})
    named = {
        "code": dvcfile.content_hashes(root, code),
        "settings": {key: dvcfile.setting(values, key) for spec in specs for key in spec.params},
    }
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
