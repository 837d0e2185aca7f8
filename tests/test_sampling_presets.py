"""Presets of the sampler: what they change, who takes them, and that options win over them."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bigr
from bigr import config
from bigr.app import panel
from bigr.app.controls import ends
from bigr.app.tasks import NO_CLASS, OWN, Tasks
from bigr.cli.image_options import Drawn
from bigr.imaging.assembly import ImageSettings
from bigr.imaging.model import ImageModel
from bigr.pipeline import dvcfile
from bigr.pipeline.check import presets_that_do_not_fit
from bigr.pipeline.planning import networks
from bigr.pipeline.planning.sampling_cost import Passes, network_flops, passes
from bigr.runtime.errors import BigrError
from bigr.sampling.unmask import Sampling
from bigr.tracking.registry.package import params_of
from bigr.tracking.registry.served import Served
from bigr.tracking.registry.served_record import ServedRecord
from tests import tiny, worlds

ROOT = Path(__file__).parents[1]
PRESETS = {
    "quality": {"iterations": 6, "diffusion_steps": 16},
    "balanced": {},
    "fast": {"diffusion_steps": [6, 2], "gumbel_temperature": 5.0, "order": "random"},
}
OWN_VALUES = {"samples__iterations": 4, "samples__diffusion_steps": 5, "samples__presets": PRESETS}


def sampler(settings: Any) -> tuple[Any, ...]:
    section = settings.samples
    return section.iterations, section.diffusion_steps, section.gumbel_temperature, section.order


def test_a_preset_replaces_the_values_of_the_section_that_it_names() -> None:
    plain = worlds.settings(**OWN_VALUES)
    assert sampler(plain)[:2] == (4, 5)
    assert sampler(worlds.settings(**OWN_VALUES, samples__preset="quality"))[:2] == (6, 16)
    assert sampler(worlds.settings(**OWN_VALUES, samples__preset="balanced")) == sampler(plain)
    assert sampler(worlds.settings(**OWN_VALUES, samples__preset="fast")) == (4, [6, 2], 5.0, "random")


@pytest.mark.parametrize("chosen", [None, "quality", "fast"])
def test_every_preset_is_the_same_whichever_is_chosen_and_records_can_be_read_back(chosen: str | None) -> None:
    settings = worlds.settings(**OWN_VALUES, samples__preset=chosen)
    plain = worlds.settings(**OWN_VALUES).samples.by_preset
    assert {name: Sampling.of(section) for name, section in settings.samples.by_preset.items()} == {
        name: Sampling.of(section) for name, section in plain.items()
    }
    written = json.loads(json.dumps(settings.model_dump()))
    assert written["samples"]["preset"] == chosen
    assert config.validate(written) == settings


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"preset": "fats"}, "samples.preset must be 'quality', 'balanced' or 'fast', got 'fats'"),
    ({"presets": PRESETS | {"fats": {}}}, "samples.presets.fats is not a setting; did you mean samples.presets.fast?"),
    ({"presets": {"quality": {}, "fast": {}}}, "samples.presets.balanced is missing; add it"),
    ({"presets": PRESETS | {"fast": None}}, "samples.presets.fast must be a section with iterations, diffusion_steps"),
    (
        {"presets": PRESETS | {"fast": {"itrations": 3}}},
        "samples.presets.fast.itrations is not a setting; did you mean samples.presets.fast.iterations?",
    ),
    ({"presets": PRESETS | {"fast": {"count": 3}}}, "samples.presets.fast.count is not a setting"),
    ({"presets": PRESETS | {"fast": {"iterations": None}}}, "samples.presets.fast.iterations must be a valid integer"),
    (
        {"presets": PRESETS | {"fast": {"iterations": 99}}, "preset": "fast"},
        "samples.presets.fast.iterations must be at most 16, the number of tokens (4×4), got 99",
    ),
    (
        {"presets": PRESETS | {"fast": {"bit_counts": [8, 16]}}, "preset": "fast"},
        "samples.diffusion_steps must be 2, the length of samples.bit_counts, got 5, preset fast",
    ),
]


@pytest.mark.parametrize(("changes", "line"), FAULTS)
def test_a_preset_that_is_wrong_is_one_line_with_its_key(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(BigrError) as caught:
        worlds.settings(**OWN_VALUES | {f"samples__{key}": value for key, value in changes.items()})
    assert str(caught.value).startswith(f"params.yaml: {line}")
    assert "\n" not in str(caught.value)


def test_the_check_names_presets_that_the_model_cannot_take() -> None:
    values = worlds.settings(**OWN_VALUES, generator__diffusion_steps=8).model_dump()
    (line,) = presets_that_do_not_fit(values)
    assert "quality: samples.presets.quality.diffusion_steps must be 2 to 8" in line
    assert presets_that_do_not_fit(worlds.settings(**OWN_VALUES).model_dump()) == []


def test_dvc_reruns_the_samples_and_what_follows_where_the_preset_changes() -> None:
    values, other = (config.read(ROOT / "params.yaml") for _ in range(2))
    other["samples"]["preset"] = "fast"
    changed = [
        name
        for name, stage in dvcfile.stages(ROOT, values).items()
        if any(dvcfile.setting(values, key) != dvcfile.setting(other, key) for key in stage.params)
    ]
    assert changed == ["samples", "evaluation"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with untrained models of 16 noise levels, and the presets."""
    root = tmp_path_factory.mktemp("project")
    worlds.write_models(root)
    (root / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    own = {key.replace("__", "."): value for key, value in OWN_VALUES.items()}
    tiny.apply(root / "params.yaml", tiny.OVERRIDES | own)
    return root


@pytest.fixture(scope="module")
def model(project: Path) -> ImageModel:
    return bigr.load(project, device="cpu")


def same(a: list[Image.Image], b: list[Image.Image]) -> bool:
    return [one.tobytes() for one in a] == [one.tobytes() for one in b]


def test_a_preset_draws_what_its_settings_draw_and_options_win_over_it(model: ImageModel) -> None:
    own = replace(model.sampling, diffusion_steps=(6, 2), gumbel_temperature=5.0, order="random")
    alone = ImageModel(model.sampler, own, model.editing, model.classes)
    assert same(model.generate([1, 2], preset="fast"), alone.generate([1, 2]))
    assert not same(model.generate([1, 2], preset="fast"), model.generate([1, 2]))
    assert same(model.generate(1, preset="fast", iterations=2), alone.generate(1, iterations=2))
    assert same(model.enrich(Image.new("RGB", (4, 4)), preset="fast"), alone.enrich(Image.new("RGB", (4, 4))))
    mask = np.ones((8, 8), dtype=bool)
    given = Image.new("RGB", (8, 8), "red")
    assert same(model.inpaint(given, mask, preset="fast"), alone.inpaint(given, mask))


def test_presets_come_with_a_saved_model_and_published_weights_have_none(
    model: ImageModel, project: Path, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    assert ImageModel.from_pretrained(tmp_path, device="cpu").presets == model.presets
    settings = ImageSettings.of_folder(project / "models", model.networks[1])
    bare = ImageModel.of(project / "models", model.networks, settings)
    with pytest.raises(BigrError, match="preset fast: this model comes without presets"):
        bare.generate(0, preset="fast")


def test_a_preset_that_is_not_there_or_does_not_fit_is_named(model: ImageModel) -> None:
    with pytest.raises(BigrError, match="preset must be one of quality, balanced, fast, got 'fats'"):
        model.generate(0, preset="fats")
    large = {"fast": replace(model.sampling, diffusion_steps=17)}
    other = ImageModel(model.sampler, model.sampling, model.editing, model.classes, presets=large)
    with pytest.raises(BigrError, match=r"preset fast does not fit this model: diffusion_steps .* 2 to 16, got 17"):
        other.generate(0, preset="fast")


def test_the_command_line_and_the_page_hand_the_preset_on(model: ImageModel) -> None:
    assert Drawn(preset="fast", steps="8,2").options() == {
        "seed": 0,
        "variants": 1,
        "preset": "fast",
        "iterations": None,
        "guidance_scale": None,
        "diffusion_steps": [8, 2],
    }
    tasks = Tasks(model, None)
    fast = model.presets["fast"]
    values = (fast.iterations, fast.guidance_scale, *ends(fast))
    own, preset = (list(tasks.generate([NO_CLASS], 0, 1, name, *values))[-1] for name in (OWN, "fast"))
    (drawn,) = model.generate(None, preset="fast")
    assert panel.uri(drawn) in preset and panel.uri(drawn) not in own


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ({}, {"iterations": 4, "diffusion_steps": 5}),
        ({"preset": "fast"}, {"preset": "fast"}),
        ({"preset": "fast", "diffusion_steps": 3}, {"preset": "fast", "diffusion_steps": 3}),
    ],
)
def test_a_request_to_a_served_version_takes_a_preset(asked: dict[str, Any], taken: dict[str, Any]) -> None:
    from mlflow.models.utils import _enforce_params_schema

    settings = worlds.settings(**OWN_VALUES)
    record = ServedRecord.of(settings, ["a", "b"])
    assert ServedRecord.read(json.loads(json.dumps(record.write()))) == record
    served, calls = Served(), []
    served.record = record
    draw = lambda labels, **how: calls.append(how) or []  # noqa: E731
    served.model = SimpleNamespace(classes=["a", "b"], takes_texts=False, generate=draw)
    served.predict(None, {"labels": np.array([1], dtype=object)}, _enforce_params_schema(asked, params_of(settings)))
    (how,) = calls
    expected = taken if "preset" in taken else {**taken, "guidance_scale": settings.samples.guidance_scale}
    assert {name: value for name, value in how.items() if name not in ("seed", "on_step")} == expected


def test_the_presets_of_the_recipe_need_fewer_operations_than_the_published_sampler() -> None:
    settings = config.load(ROOT / "recipes/imagenet256-L-d24.yaml")
    tokens, presets = settings.grid**2, settings.samples.by_preset
    quality = Sampling.of(settings.samples)
    assert Sampling.of(presets["quality"]) == quality
    with torch.device("meta"):
        model = networks.build(settings, 1000).bigr.eval()
        calls = 2 * quality.iterations  # guided, all tokens in each; here h is embedded once in each, which is less
        whole = Passes(calls, calls * tokens, calls * tokens * quality.steps(0), quality.iterations * quality.steps(0))
        published = sum(network_flops(model, whole))
        ratio = {
            name: published / sum(network_flops(model, passes(Sampling.of(section), tokens, 1, direct=False)))
            for name, section in presets.items()
        }
    assert ratio["balanced"] > 6.5
    assert ratio["fast"] > 2 * ratio["balanced"]


def test_every_preset_of_the_project_and_its_recipes_fits() -> None:
    for path in (ROOT / "params.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))):
        assert presets_that_do_not_fit(config.read(path)) == [], path.name
