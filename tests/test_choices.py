"""The paper's choices, set in params.yaml and run through the stages: each runs to samples, and changes what it should.

docs/choices.md lists them. What the samplers' settings do to the distribution of samples is in tests/test_exactness.py.
"""

import csv
import json
import shutil
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bigr.interop.folders import load_model
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.models.masked.transcoder import Transcoder, TranscoderConfig
from bigr.runtime.context import Context
from bigr.runtime.files import write_tensors
from bigr.runtime.seeds import derive_seed
from bigr.sampling.decode import decoded
from bigr.sampling.unmask import Sampling, sample_codes
from bigr.stages import draw_samples, encode_codes, train_generator, train_tokenizer
from bigr.stages import train_transcoder as transcoder
from tests.test_training import run_killed_after, steps_of, weights
from tests.worlds import lpips_weights, settings, write_models, write_shards

CLASSES = 2
SHORT: dict[str, Any] = {
    "run__workers": 1,
    "tokenizer__steps": 2,
    "tokenizer__batch_size": 4,
    "tokenizer__validate_every": 2,
    "generator__steps": 2,
    "generator__batch_size": 8,
    "generator__validate_every": 2,
    "transcoder__steps": 1,
    "transcoder__batch_size": 8,
    "transcoder__validate_every": 1,
    "samples__count": 4,
}


def run(root: Path, *stages: ModuleType, **changes: Any) -> None:
    for stage in stages:
        stage.run(settings(**{**SHORT, **changes}), Context(root))


def config_of(root: Path, name: str = "bigr") -> Any:
    return load_model(root / "models" / name, BiGR).config


def images_of(root: Path) -> np.ndarray:
    with np.load(root / "outputs" / "samples.npz") as file:
        images: np.ndarray = file["arr_0"]
    return images


def curve(root: Path, stage: str) -> list[dict[str, str]]:
    with (root / "outputs" / "curves" / f"{stage}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project up to its codes: 16-pixel images of two classes, 4×4 tokens of 24 bits."""
    root = tmp_path_factory.mktemp("encoded")
    write_shards(root, size=16, classes=CLASSES)
    run(root, train_tokenizer, encode_codes)
    return root


@pytest.fixture
def project(encoded: Path, tmp_path: Path) -> Path:
    shutil.copytree(encoded, tmp_path / "project")
    return tmp_path / "project"


# The tokenizer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "multipliers", "grid"), [(10, [1, 1], 8), (20, [1, 1, 1, 1], 2), (1, [1, 1, 2], 4)])
def test_any_number_of_bits_and_any_grid_lead_to_samples(
    tmp_path: Path, bits: int, multipliers: list[int], grid: int
) -> None:
    write_shards(tmp_path, size=16, classes=CLASSES)
    shape = {"code_bits": bits, "channel_multipliers": multipliers, "attention_resolutions": [16, grid]}
    changes = {f"tokenizer__{name}": value for name, value in shape.items()}
    run(tmp_path, train_tokenizer, encode_codes, train_generator, transcoder, draw_samples, **changes)
    index = json.loads((tmp_path / "data" / "codes" / "index.json").read_text())
    assert (index["code_bits"], index["grid"]) == (bits, grid)
    assert (config_of(tmp_path).code_bits, config_of(tmp_path).grid) == (bits, grid)
    assert images_of(tmp_path).shape == (4, 16, 16, 3)


def test_lookup_free_codes_lead_to_samples(tmp_path: Path) -> None:
    write_shards(tmp_path, size=16, classes=CLASSES)
    run(tmp_path, train_tokenizer, encode_codes, train_generator, transcoder, draw_samples, tokenizer__quantizer="lfq")
    assert load_model(tmp_path / "models" / "tokenizer", Tokenizer).config.quantizer == "lfq"
    assert images_of(tmp_path).shape == (4, 16, 16, 3)


@pytest.mark.parametrize("weight", ["lfq_entropy_weight", "lfq_commitment_weight"])
def test_the_penalties_of_lookup_free_codes_are_weighed(tmp_path: Path, weight: str) -> None:
    write_shards(tmp_path, size=16)
    losses = []
    for value in (0.0, 0.5):
        run(
            tmp_path, train_tokenizer, tokenizer__quantizer="lfq", tokenizer__steps=1, **{f"tokenizer__{weight}": value}
        )
        losses.append(curve(tmp_path, "tokenizer")[0])
    penalty = float(losses[1]["train_" + weight.removeprefix("lfq_").removesuffix("_weight")])
    assert float(losses[1]["train_loss"]) - float(losses[0]["train_loss"]) == pytest.approx(0.5 * penalty, abs=1e-4)


ADVERSARIAL: dict[str, Any] = {
    "shards__image_size": 32,
    "tokenizer__channel_multipliers": [1, 1],
    "tokenizer__attention_resolutions": [16],
    "tokenizer__steps": 6,
    "tokenizer__validate_every": 1,
    "tokenizer__perceptual_weight": 1.0,
    "tokenizer__perceptual_weights": "lpips.safetensors",
    "tokenizer__gan_weight": 1.0,
    "tokenizer__gan_start": 4,
    "tokenizer__gan_base_channels": 4,
    "run__checkpoint_every": 2,
    "samples__iterations": 1,
}


def adversarial(root: Path, **changes: Any) -> partial[None]:
    """A training of the tokenizer with LPIPS and a critic, in a project of its own."""
    write_shards(root)
    write_tensors(root / "lpips.safetensors", lpips_weights())
    return partial(train_tokenizer.run, settings(**{**SHORT, **ADVERSARIAL, **changes}), Context(root, "f"))


@pytest.mark.parametrize("killed_after", [3, 5])
def test_a_tokenizer_killed_on_either_side_of_its_critics_start_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    adversarial(tmp_path / "straight")()
    resumed = adversarial(tmp_path / "killed")
    run_killed_after(monkeypatch, killed_after, resumed)
    assert steps_of(monkeypatch, resumed) == 6 - killed_after // 2 * 2
    ends = [weights(tmp_path / name / "models" / "tokenizer") for name in ("straight", "killed")]
    assert ends[0] == ends[1]
    rows = curve(tmp_path / "killed", "tokenizer")
    assert rows == curve(tmp_path / "straight", "tokenizer")
    assert all(float(row["train_lpips"]) > 0 for row in rows)
    for name in ("train_gan", "train_discriminator_loss"):
        assert [row[name] != "nan" for row in rows] == [False] * 3 + [True] * 3
    assert all(0 <= float(row["train_gan_adaptive"]) <= 1 for row in rows[3:])


def test_up_to_its_start_the_critic_changes_nothing(tmp_path: Path) -> None:
    adversarial(tmp_path / "with", tokenizer__steps=3)()
    adversarial(tmp_path / "without", tokenizer__steps=3, tokenizer__gan_weight=0.0)()
    adversarial(tmp_path / "earlier", tokenizer__steps=3, tokenizer__gan_start=3)()
    found = [weights(tmp_path / name / "models" / "tokenizer") for name in ("with", "without", "earlier")]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("key", "value"),
    [("perceptual_weight", 0.0), ("perceptual_weight", 0.5), ("gan_weight", 0.5), ("gan_augment", False)],
)
def test_each_term_of_the_tokenizers_loss_is_a_setting(tmp_path: Path, key: str, value: object) -> None:
    short = {"tokenizer__steps": 2, "tokenizer__gan_start": 1}
    adversarial(tmp_path / "paper", **short)()
    adversarial(tmp_path / "changed", **short, **{f"tokenizer__{key}": value})()
    found = [weights(tmp_path / name / "models" / "tokenizer") for name in ("paper", "changed")]
    assert found[0] != found[1]


# The generator and its transcoder ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["flip", "x0", "direct", "mask"])
@pytest.mark.parametrize("section", ["generator", "transcoder"])
def test_every_target_trains_and_samples(project: Path, target: str, section: str) -> None:
    changes = {f"{section}__target": target}
    if section == "transcoder":
        changes |= {"generator__target": "x0" if target == "flip" else "flip", "transcoder__start": "scratch"}
    run(project, train_generator, transcoder, draw_samples, **changes)
    assert config_of(project).target == target
    assert (config_of(project, "generator").target == target) == (section == "generator")
    assert all(float(row["val_loss"]) > 0 for row in curve(project, "transcoder"))
    assert len(np.unique(images_of(project), axis=0)) == 4


@pytest.mark.parametrize("target", ["flip", "x0", "direct", "mask"])
def test_a_transcoder_of_every_target_learns_from_its_condition(target: str) -> None:
    torch.manual_seed(0)
    transcoder = Transcoder(TranscoderConfig(code_bits=8, condition_dim=16, dim=32, blocks=1, target=target))
    optimiser = torch.optim.Adam(transcoder.parameters(), lr=0.01)
    condition = torch.randn(64, 16)
    x0, draws = (condition[:, :8] > 0).float(), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(100):
        losses.append(transcoder.loss(x0, condition, draws).mean())
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert torch.stack(losses[-10:]).mean() < 0.6 * losses[0]


@pytest.mark.parametrize(("target", "passes"), [("flip", 5), ("x0", 5), ("direct", 1), ("mask", 5)])
def test_a_direct_transcoder_takes_one_pass_instead_of_a_diffusions_steps(
    project: Path, monkeypatch: pytest.MonkeyPatch, target: str, passes: int
) -> None:
    changes = {"generator__target": target, "samples__diffusion_steps": 5, "samples__iterations": 3}
    run(project, train_generator, transcoder, **changes)
    calls: list[int] = []
    denoise = Transcoder.denoise
    monkeypatch.setattr(Transcoder, "denoise", lambda self, *given: calls.append(1) or denoise(self, *given))
    run(project, draw_samples, **changes)
    assert len(calls) == 3 * passes


@pytest.mark.parametrize(("use_labels", "dropout"), [(True, 0.0), (True, 0.5), (False, 0.5)])
def test_training_sees_the_labels_that_the_settings_leave_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, use_labels: bool, dropout: float
) -> None:
    seen: list[Tensor] = []
    hidden = BiGR.hidden
    monkeypatch.setattr(BiGR, "hidden", lambda self, c, labels, m: seen.append(labels) or hidden(self, c, labels, m))
    changes = {"generator__use_labels": use_labels, "generator__label_dropout": dropout, "samples__guidance_scale": 1.0}
    run(project, train_generator, transcoder, generator__steps=8, **changes)
    unconditional = torch.cat(seen) == CLASSES
    assert unconditional.all() == (not use_labels)
    assert unconditional.any() == (not use_labels or dropout > 0)
    run(project, draw_samples, **changes)
    assert images_of(project).shape == (4, 16, 16, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [("condition_rope", True), ("diffusion_steps", 8), ("transcoder_dim", 48), ("transcoder_blocks", 2), ("layers", 1)],
)
def test_the_shape_of_the_generator_is_a_setting(project: Path, key: str, value: object) -> None:
    run(project, train_generator, transcoder, draw_samples, **{f"generator__{key}": value})
    assert getattr(config_of(project), key) == value


# Sampling ------------------------------------------------------------------------------------------------------------

SAMPLING: dict[str, Any] = {
    "iterations": 4,
    "diffusion_steps": 4,
    "order": "entropy",
    "guidance_scale": 2.0,
    "guidance_schedule": "constant",
    "temperature": 1.0,
    "gumbel_temperature": 0.3,
    "gumbel_schedule": "constant",
    "deterministic_bits": False,
}
OTHERS = [
    *(("order", "margin"), ("order", "random"), ("order", "raster")),
    *(("guidance_scale", 1.0), ("guidance_scale", 4.0), ("guidance_schedule", "linear")),
    *(("gumbel_temperature", 0.0), ("gumbel_schedule", "up"), ("gumbel_schedule", "down")),
    *(("temperature", 0.5), ("deterministic_bits", True), ("iterations", 8), ("diffusion_steps", 8)),
]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A project with models of random weights, and its samples under SAMPLING."""
    root = tmp_path_factory.mktemp("untrained")
    write_models(root)
    return root, sampled(root, SAMPLING)


def sampled(root: Path, values: dict[str, Any]) -> bytes:
    run(root, draw_samples, **{f"samples__{name}": value for name, value in values.items()})
    return images_of(root).tobytes()


@pytest.mark.parametrize(("key", "value"), OTHERS, ids=lambda value: str(value))
def test_each_choice_of_the_sampler_is_a_setting(untrained: tuple[Path, bytes], key: str, value: object) -> None:
    root, usual = untrained
    values = SAMPLING | {key: value}
    found = sampled(root, values)
    assert found != usual
    model = load_model(root / "models" / "bigr", BiGR)
    seeds = [derive_seed(0, "samples", index) for index in range(4)]
    bits = sample_codes(model, torch.arange(4) % model.config.num_classes, Sampling(**values), seeds)
    assert found == decoded(load_model(root / "models" / "tokenizer", Tokenizer), bits).numpy().tobytes()
