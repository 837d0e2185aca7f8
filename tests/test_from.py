"""`tokenizer.from` and `generator.from`: a stage takes a ready model over instead of training one."""

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from torch import nn

from bigr import config
from bigr.interop.folders import load_model, model_hash, save, tokenizer_of, without_weights
from bigr.interop.published import exchange
from bigr.interop.published.published_generator import PUBLISHED_WIDTHS, generator_config
from bigr.interop.published.weight_names import published_generator, published_tokenizer
from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.models.masked.generator import TEXT_FIELDS, BiGR, BiGRConfig
from bigr.models.presets import PRESETS
from bigr.pipeline import check, runner
from bigr.pipeline.stage_table import NAMES
from bigr.runtime.context import Context
from bigr.runtime.errors import BigrError
from bigr.stages import draw_samples, encode_codes, train_generator, train_tokenizer, train_transcoder
from tests import publications, scratch, tiny, worlds
from tests.test_cli import Silent

TOKENIZER, GENERATOR = "models/published/tokenizer", "models/published/bigr"
CLASSES = 3
PAGE = (scratch.ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
RECIPES = [
    YAML(typ="safe").load(block)
    for block in re.findall(
        r"```yaml\n(.*?)```", PAGE.split("## Start from pretrained models")[1].split("\n## ")[0], re.S
    )
]
"""The lines to change, as the page shows them."""


def settings(*recipes: dict[str, Any], **overrides: Any) -> config.Settings:
    """The tiny settings for the world's pictures, with the lines of recipes, then `overrides` as section__key."""
    lines = {
        f"{section}__{key}": v for recipe in recipes for section, keys in recipe.items() for key, v in keys.items()
    }
    return worlds.settings(**{"shards__source": "pictures", "codes__views": ["identity", "flip"], **lines, **overrides})


SETTINGS = settings()


def scramble(model: nn.Module, seed: int) -> None:
    """Weights that hide nothing behind the zeros of an initialisation."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)


def ready_tokenizer(folder: Path, seed: int = 0, **shape: Any) -> None:
    """A tokenizer as the settings describe it, but for `shape`."""
    model = Tokenizer(replace(TokenizerConfig.of(SETTINGS.tokenizer, image_size=16), **shape))
    scramble(model, seed)
    save(folder, model)


def ready_generator(folder: Path, made_for: str | None = None, **shape: Any) -> None:
    """A generator as the settings describe it, but for `shape`."""
    described = BiGRConfig(24, 4, CLASSES, **sizes(SETTINGS.generator))
    model = BiGR(replace(described, **shape))
    scramble(model, 1)
    save(folder, model, made_for)


def sizes(section: config.GeneratorSettings) -> dict[str, Any]:
    names = BiGRConfig.__dataclass_fields__.keys() - {"code_bits", "grid", "num_classes", *TEXT_FIELDS}
    return {name: getattr(section, name) for name in names}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards and ready models, and the codes that the ready tokenizer gives."""
    root = tmp_path_factory.mktemp("world")
    worlds.write_shards(root, size=16, classes=CLASSES)
    ready_tokenizer(root / TOKENIZER)
    ready_generator(root / GENERATOR, model_hash(root / TOKENIZER))
    context = Context(root, "f")
    train_tokenizer.run(settings(tokenizer__from=TOKENIZER), context)
    encode_codes.run(settings(), context)
    return root


@pytest.fixture
def root(world: Path, tmp_path: Path) -> Path:
    """A copy of the world for a test to change."""
    return Path(shutil.copytree(world, tmp_path / "world"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows(root: Path, stage: str) -> list[dict[str, str]]:
    with (root / "outputs" / "curves" / f"{stage}.csv").open() as file:
        return list(csv.DictReader(file))


def complaints(run: Any) -> list[str]:
    """The lines of the error that a call ends with."""
    with pytest.raises(BigrError) as caught:
        run()
    return str(caught.value).splitlines()


def test_a_ready_tokenizer_is_taken_over_to_the_byte_measured_and_drawn(root: Path) -> None:
    assert files(root / "models/tokenizer") == files(root / TOKENIZER)
    (row,) = rows(root, "tokenizer")
    assert (row["step"], row["train_loss"]) == ("0", "nan")  # the column is there: the plots ask for it
    assert float(row["val_l1"]) > 0 and float(row["val_psnr"]) and float(row["val_bit_entropy"]) <= 1
    assert (root / "outputs/reconstructions.png").is_file()
    assert not (root / "checkpoints").exists()


def test_a_ready_generator_is_taken_over_and_measured(root: Path) -> None:
    train_generator.run(settings(generator__from=GENERATOR), Context(root, "f"))
    assert files(root / "models/generator") == files(root / GENERATOR)
    (row,) = rows(root, "generator")
    assert (row["step"], row["train_loss"]) == ("0", "nan")
    assert float(row["val_loss"]) > 0


def test_what_only_a_training_reads_comes_from_the_settings(root: Path) -> None:
    """A transcoder from scratch starts with generator.init_std, whatever the ready model says."""
    ready_generator(root / GENERATOR, dropout=0.3, init_std=0.9, position_std=0.9)
    train_generator.run(settings(generator__from=GENERATOR, generator__init_std=0.05), Context(root, "f"))
    taken = load_model(root / "models/generator", BiGR).config
    assert (taken.dropout, taken.init_std, taken.position_std) == (
        SETTINGS.generator.dropout,
        0.05,
        SETTINGS.generator.position_std,
    )
    assert files(root / "models/generator")["model.safetensors"] == files(root / GENERATOR)["model.safetensors"]


def test_the_settings_of_a_training_are_not_used(root: Path) -> None:
    changes = {"steps": 10**9, "learning_rate": 10.0, "warmup_steps": 10**9 + 1, "ema_decay": 0.0, "batch_size": 7}
    lines = {f"{section}__{key}": value for section in ("tokenizer", "generator") for key, value in changes.items()}
    chosen = settings(tokenizer__from=TOKENIZER, generator__from=GENERATOR, **lines)
    train_tokenizer.run(chosen, Context(root, "f"))
    train_generator.run(chosen, Context(root, "f"))
    assert files(root / "models/tokenizer") == files(root / TOKENIZER)
    assert files(root / "models/generator") == files(root / GENERATOR)


def test_a_tokenizer_from_elsewhere_is_recorded_where_the_generator_names_none(root: Path) -> None:
    ready_generator(root / GENERATOR, made_for=None)
    train_generator.run(settings(generator__from=GENERATOR), Context(root, "f"))
    assert tokenizer_of(root / "models/generator") == model_hash(root / "models/tokenizer")


OTHER_TOKENIZERS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("tokenizer.quantizer", {"quantizer": "lfq"}, {}),
    ("tokenizer.code_bits", {"code_bits": 16}, {}),
    ("tokenizer.embed_dim", {"embed_dim": 64}, {}),
    ("tokenizer.base_channels", {"base_channels": 64}, {}),
    ("tokenizer.channel_multipliers", {"channel_multipliers": (1, 2, 2)}, {}),
    ("tokenizer.res_blocks", {"res_blocks": 2}, {}),
    ("tokenizer.attention_resolutions", {"attention_resolutions": (8,)}, {}),
    ("tokenizer.norm_first", {"norm_first": False}, {}),
    ("shards.image_size", {"image_size": 32}, {}),
]


@pytest.mark.parametrize(("key", "shape", "_"), OTHER_TOKENIZERS, ids=[key for key, *_ in OTHER_TOKENIZERS])
def test_each_setting_that_is_not_as_the_tokenizer_is_named(
    root: Path, key: str, shape: dict[str, Any], _: Any
) -> None:
    ready_tokenizer(root / TOKENIZER, **shape)
    ((field, value),) = shape.items()
    ours = json.dumps(getattr(TokenizerConfig.of(SETTINGS.tokenizer, image_size=16), field))
    expected = [f"{key} is {ours}, but {TOKENIZER} has {json.dumps(value)}; set it to {json.dumps(value)}"]
    chosen = settings(tokenizer__from=TOKENIZER)
    assert complaints(lambda: check.check_models(root, chosen)) == expected
    before = files(root / "models/tokenizer")
    assert complaints(lambda: train_tokenizer.run(chosen, Context(root, "f"))) == expected
    assert files(root / "models/tokenizer") == before


def test_no_field_of_a_shape_goes_unchecked() -> None:
    """A new field is compared as well, unless it is among those that only the start of a training reads."""
    assert {next(iter(shape)) for _, shape, _ in OTHER_TOKENIZERS} == TokenizerConfig.__dataclass_fields__.keys()
    checked = {next(iter(shape)) for _, shape in OTHER_GENERATORS} | {"code_bits", "grid", "num_classes", *TEXT_FIELDS}
    assert checked | {"dropout", "init_std", "position_std"} == BiGRConfig.__dataclass_fields__.keys()


OTHER_GENERATORS: list[tuple[str, dict[str, Any]]] = [
    ("generator.dim", {"dim": 64}),
    ("generator.layers", {"layers": 3}),
    ("generator.heads", {"heads": 4}),
    ("generator.ffn_multiple_of", {"ffn_multiple_of": 64}),
    ("generator.condition_rope", {"condition_rope": True}),
    ("generator.transcoder_dim", {"transcoder_dim": 64}),
    ("generator.transcoder_blocks", {"transcoder_blocks": 2}),
    ("generator.diffusion_steps", {"diffusion_steps": 16}),
    ("generator.target", {"target": "x0"}),
]


@pytest.mark.parametrize(("key", "shape"), OTHER_GENERATORS, ids=[key for key, _ in OTHER_GENERATORS])
def test_each_setting_that_is_not_as_the_generator_is_named(root: Path, key: str, shape: dict[str, Any]) -> None:
    ready_generator(root / GENERATOR, **shape)
    ((field, value),) = shape.items()
    ours = json.dumps(getattr(SETTINGS.generator, field))
    expected = [f"{key} is {ours}, but {GENERATOR} has {json.dumps(value)}; set it to {json.dumps(value)}"]
    chosen = settings(generator__from=GENERATOR)
    assert complaints(lambda: check.check_models(root, chosen)) == expected
    assert complaints(lambda: train_generator.run(chosen, Context(root, "f"))) == expected
    assert not (root / "models/generator").exists()


def test_several_unequal_settings_are_as_many_lines(root: Path) -> None:
    ready_tokenizer(root / TOKENIZER, res_blocks=2, norm_first=False)
    ready_generator(root / GENERATOR, code_bits=32, grid=8, layers=3)
    chosen = settings(tokenizer__from=TOKENIZER, generator__from=GENERATOR)
    assert complaints(lambda: check.check_models(root, chosen)) == [
        f"tokenizer.res_blocks is 1, but {TOKENIZER} has 2; set it to 2",
        f"tokenizer.norm_first is true, but {TOKENIZER} has false; set it to false",
        f"shards.image_size is 16, 4×4 tokens, but {GENERATOR} has 8×8; set it to 32, or name another generator",
        f"tokenizer.code_bits is 24, but {GENERATOR} has 32; set it to 32",
        f"generator.layers is 2, but {GENERATOR} has 3; set it to 3",
    ]
    assert check.check_models(root, chosen, ["codes", "samples"]) is None  # done with them


def test_a_generator_of_other_tokens_is_refused(root: Path) -> None:
    ready_generator(root / GENERATOR, code_bits=32, grid=8)
    (line,) = complaints(lambda: train_generator.run(settings(generator__from=GENERATOR), Context(root, "f")))
    assert line.startswith(f"generator.from is {GENERATOR}, for 8×8 tokens of 32 bits; data/codes has 4×4 of 24 bits;")


def test_a_generator_of_another_tokenizers_codes_is_refused_and_both_are_named(root: Path) -> None:
    ready_tokenizer(root / "models/other", seed=5)
    theirs, ours = (model_hash(root / path) for path in ("models/other", TOKENIZER))
    ready_generator(root / GENERATOR, made_for=theirs)
    chosen = settings(tokenizer__from=TOKENIZER, generator__from=GENERATOR)
    for run in (lambda: train_generator.run(chosen, Context(root, "f")), lambda: check.check_models(root, chosen)):
        (line,) = complaints(run)
        assert f"generator.from is {GENERATOR}" in line and theirs[:12] in line and ours[:12] in line
        assert line.endswith("name the generator's own tokenizer in tokenizer.from")


def test_a_generator_of_other_classes_is_refused_with_both_numbers(root: Path) -> None:
    ready_generator(root / GENERATOR, num_classes=1000)
    chosen = settings(generator__from=GENERATOR)
    line = f"generator.from is {GENERATOR}, which knows 1000 classes; the images have 3; name a folder with its classes"
    for run in (
        lambda: train_generator.run(chosen, Context(root, "f")),
        lambda: check.check_models(root, chosen, classes=CLASSES),
    ):
        (said,) = complaints(run)
        assert said.startswith(line) and said.endswith("or train a generator (generator.from: null)")
    check.check_models(root, chosen)  # nobody knows yet how many the images have


def test_a_model_that_is_none_or_another_kind_is_named_with_its_setting(root: Path) -> None:
    chosen = settings(tokenizer__from=GENERATOR)
    (line,) = complaints(lambda: check.check_models(root, chosen))
    assert line.startswith("tokenizer.from: ") and line.endswith(
        "holds a model of kind 'bigr'; a 'tokenizer' is needed here"
    )
    (root / TOKENIZER / "model.safetensors").write_bytes(b"damaged")
    (line,) = complaints(lambda: train_tokenizer.run(settings(tokenizer__from=TOKENIZER), Context(root, "f")))
    assert line.startswith("tokenizer.from: ") and "model.safetensors: cannot be read" in line
    both = settings(tokenizer__from=TOKENIZER, generator__from=GENERATOR)
    for name in ("model.safetensors", "config.json"):
        ready_tokenizer(root / TOKENIZER)
        (root / TOKENIZER / name).unlink()
        (line,) = complaints(lambda: check.check_models(root, both))
        assert line.startswith("tokenizer.from: ") and f"{name}: no such file" in line
    check.check_models(root, both, ["generator"])  # done with the tokenizer


@pytest.mark.parametrize("path", ["models/tokenizer", "models/../models/bigr", "{root}/models/generator", "link"])
def test_a_model_that_a_stage_writes_is_refused(root: Path, path: str) -> None:
    """DVC would remove it before the stage could read it."""
    (root / "link").symlink_to("models/tokenizer")
    path = path.format(root=root)
    (line,) = complaints(lambda: check.check_files(root, settings(tokenizer__from=path)))
    assert line.startswith(f"tokenizer.from is {path}, which a stage of this project writes; name a copy of it")


def test_a_model_that_is_not_there_is_named(root: Path) -> None:
    chosen = settings(generator__from="models/nowhere.pt")
    assert complaints(lambda: check.check_files(root, chosen)) == [
        "generator.from is models/nowhere.pt, which does not exist; put the model there, or name another"
    ]
    check.check_files(root, chosen, ["transcoder"])


# The three uses, by the lines that docs/settings.md shows.


def test_published_models_are_sampled_as_they_are(root: Path) -> None:
    chosen = settings(RECIPES[0])
    check.check_models(root, chosen, classes=CLASSES)
    for stage in (train_tokenizer, encode_codes, train_generator, train_transcoder, draw_samples):
        stage.run(chosen, Context(root, "f"))
    assert files(root / "models/bigr") == files(root / GENERATOR)
    assert rows(root, "transcoder")[0]["train_loss"] == "nan"
    assert (root / "outputs/samples.npz").is_file()


@pytest.mark.parametrize("start", ["joint", "scratch"])
def test_a_transcoder_is_fitted_on_a_published_backbone(root: Path, start: str) -> None:
    chosen = settings(RECIPES[1], transcoder__start=start, transcoder__dim=48, transcoder__steps=4)
    train_generator.run(chosen, Context(root, "f"))
    train_transcoder.run(chosen, Context(root, "f"))
    ready, fitted = (load_model(root / folder, BiGR) for folder in (GENERATOR, "models/bigr"))
    assert fitted.config.transcoder_dim == (48 if start == "scratch" else ready.config.transcoder_dim)
    for name, weight in ready.backbone.state_dict().items():
        assert torch.equal(weight, fitted.backbone.state_dict()[name]), name
    assert rows(root, "transcoder")[-1]["step"] == "4"
    if start == "joint":
        assert not torch.equal(ready.transcoder.final_layer.linear.weight, fitted.transcoder.final_layer.linear.weight)


def test_a_generator_is_trained_on_a_published_tokenizer(root: Path) -> None:
    chosen = settings(RECIPES[2])
    for stage in (train_tokenizer, encode_codes, train_generator):
        stage.run(chosen, Context(root, "f"))
    assert tokenizer_of(root / "models/generator") == model_hash(root / TOKENIZER)
    assert rows(root, "generator")[-1]["step"] == str(chosen.generator.steps)


def test_the_page_shows_the_three_uses() -> None:
    assert [[f"{s}.{k}" for s, keys in recipe.items() for k in keys] for recipe in RECIPES] == [
        ["tokenizer.from", "generator.from", "transcoder.steps"],
        ["tokenizer.from", "generator.from", "transcoder.start", "transcoder.steps"],
        ["tokenizer.from"],
    ]
    assert {recipe["tokenizer"]["from"] for recipe in RECIPES} == {TOKENIZER}
    assert {recipe["generator"]["from"] for recipe in RECIPES[:2]} == {GENERATOR}


# Files of published weights, without importing them first.


@pytest.fixture
def published(root: Path) -> Path:
    """The world with the ready models also as files under the published names, in models/files."""
    folder = root / "models/files"
    folder.mkdir()
    states = [load_model(root / path, cls).state_dict() for path, cls in ((TOKENIZER, Tokenizer), (GENERATOR, BiGR))]
    publications.save_tokenizer(folder / "ae.th", published_tokenizer(states[0]))
    publications.save_generator(folder / "bigr.pt", published_generator(states[1]), opt={"state": {}}, args=None)
    exchange.export_tokenizer(root / TOKENIZER, folder / "ae.safetensors")
    exchange.export_generator(root / GENERATOR, folder / "bigr.safetensors")
    return root


@pytest.mark.parametrize("suffixes", [("th", "pt"), ("safetensors", "safetensors")], ids=" ".join)
def test_files_give_the_same_models_as_folders(published: Path, suffixes: tuple[str, str]) -> None:
    ae, bigr = (f"models/files/{name}.{suffix}" for name, suffix in zip(("ae", "bigr"), suffixes, strict=True))
    chosen = settings(tokenizer__from=ae, generator__from=bigr)
    check.check_files(published, chosen)
    check.check_models(published, chosen, classes=CLASSES)
    train_tokenizer.run(chosen, Context(published, "f"))
    train_generator.run(chosen, Context(published, "f"))
    assert files(published / "models/tokenizer") == files(published / TOKENIZER)
    assert files(published / "models/generator") == files(published / GENERATOR)


def test_the_settings_tell_what_a_file_does_not(published: Path) -> None:
    """Heads and the size of images; an exported file tells both."""
    lines = {"generator__heads": 4, "shards__image_size": 32, "tokenizer__attention_resolutions": [8]}
    plain = settings(tokenizer__from="models/files/ae.th", generator__from="models/files/bigr.pt", **lines)
    assert complaints(lambda: check.check_models(published, plain)) == [
        "shards.image_size is 32, 8×8 tokens, but models/files/bigr.pt has 4×4; set it to 16, or name another generator"
    ]
    told = {"tokenizer__from": "models/files/ae.safetensors", "generator__from": "models/files/bigr.safetensors"}
    assert complaints(lambda: check.check_models(published, settings(**told, **lines))) == [
        "shards.image_size is 32, but models/files/ae.safetensors has 16; set it to 16",
        "tokenizer.attention_resolutions is [8], but models/files/ae.safetensors has [4]; set it to [4]",
        "shards.image_size is 32, 8×8 tokens, but models/files/bigr.safetensors has 4×4; set it to 16, or name another "
        "generator",
        "generator.heads is 4, but models/files/bigr.safetensors has 2; set it to 2",
    ]
    train_generator.run(settings(generator__from="models/files/bigr.pt", generator__heads=4), Context(published, "f"))
    assert load_model(published / "models/generator", BiGR).config.heads == 4


def test_the_heads_of_a_published_width_are_known() -> None:
    tensors = published_generator(without_weights(BiGR, PRESETS["XL"]).state_dict())
    assert {preset.dim for preset in PRESETS.values()} == set(PUBLISHED_WIDTHS)
    assert generator_config(tensors, "file", like=replace(PRESETS["XL"], heads=5)) == PRESETS["XL"]


def test_a_file_of_another_shape_or_kind_is_refused(published: Path) -> None:
    other = settings(generator__from="models/files/bigr.pt", tokenizer__code_bits=16, generator__dim=64)
    assert complaints(lambda: check.check_models(published, other)) == [
        "tokenizer.code_bits is 16, but models/files/bigr.pt has 24; set it to 24",
        "generator.dim is 64, but models/files/bigr.pt has 32; set it to 32",
    ]
    (line,) = complaints(lambda: check.check_models(published, settings(tokenizer__from="models/files/bigr.pt")))
    assert line.startswith("tokenizer.from: ") and "where a tokenizer is expected" in line
    (published / "models/files/ae.th").write_bytes((published / "models/files/ae.th").read_bytes()[:1000])
    (line,) = complaints(lambda: check.check_models(published, settings(tokenizer__from="models/files/ae.th")))
    assert line.startswith("tokenizer.from: ") and "ae.th" in line


# What the rest of the project makes of it.

DVC_YAML = """\
stages:
  shards:
    cmd: bigr run shards
    deps: ["${shards.source}"]
    params: [seed, shards]
    outs: [data/shards]
  tokenizer:
    cmd: bigr run tokenizer
    deps: [data/shards]
    params: [tokenizer]
    outs: [models/tokenizer, outputs/curves/tokenizer.csv, outputs/reconstructions.png]
"""


@pytest.fixture
def project(root: Path) -> Path:
    """The world as a DVC project with settings."""
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text(f"[core]\n    no_scm = true\n    site_cache_dir = {root / 'site'}\n")
    (root / "dvc.yaml").write_text(DVC_YAML)
    shutil.copy(scratch.ROOT / "params.yaml", root / "params.yaml")
    lines = {"shards.source": "pictures", "tokenizer.from": TOKENIZER, "generator.from": GENERATOR}
    tiny.apply(root / "params.yaml", tiny.OVERRIDES | lines)
    return root


def test_what_is_read_is_part_of_the_fingerprint_and_of_the_record(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "Tracker", Silent)
    prints, inputs = [], []
    run = train_tokenizer.run
    monkeypatch.setattr(
        train_tokenizer, "run", lambda s, context: (prints.append(context.fingerprint), run(s, context))
    )
    for seed in (0, 0, 7):
        ready_tokenizer(project / TOKENIZER, seed)
        ready_generator(project / GENERATOR, model_hash(project / TOKENIZER))
        runner.run_stage("tokenizer", project, project / "params.yaml")
        inputs.append(dict(Silent.inputs))  # type: ignore[call-overload]
        assert files(project / "models/tokenizer") == files(project / TOKENIZER)
    assert prints[0] == prints[1] != prints[2]
    assert all(set(read) == {"data/shards", TOKENIZER} for read in inputs)
    assert inputs[0] == inputs[1] and inputs[0][TOKENIZER] != inputs[2][TOKENIZER]


def test_a_stage_refuses_what_a_later_one_could_not_use(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready_generator(project / GENERATOR, layers=3)
    monkeypatch.setattr(train_tokenizer, "run", lambda *_: pytest.fail("it ran"))
    (line,) = complaints(lambda: runner.run_stage("tokenizer", project, project / "params.yaml"))
    assert line == f"generator.layers is 2, but {GENERATOR} has 3; set it to 3"


def test_check_finds_what_does_not_fit_without_running_anything(project: Path) -> None:
    shutil.copy(scratch.ROOT / "dvc.yaml", project / "dvc.yaml")
    lines = check.summary(project, project / "params.yaml")
    assert f"ready       tokenizer from {TOKENIZER}" in lines and f"ready       generator from {GENERATOR}" in lines
    assert "training    0 + 0 + 3 steps (tokenizer, generator, transcoder)" in lines
    ready_tokenizer(project / TOKENIZER, res_blocks=2)
    ready_generator(project / GENERATOR, num_classes=1000)
    unequal = f"tokenizer.res_blocks is 1, but {TOKENIZER} has 2; set it to 2"
    first, second = complaints(lambda: check.summary(project, project / "params.yaml"))
    assert first == unequal
    assert second.startswith(f"generator.from is {GENERATOR}, which knows 1000 classes; the images have 3; ")

    shutil.rmtree(project / "pictures" / "train" / "1")  # so that the shards would be made anew
    (line,) = complaints(lambda: check.summary(project, project / "params.yaml"))
    assert "class '1' is not in train/" in line


@pytest.mark.slow
def test_two_processes_take_a_model_over_as_one_does(tmp_path: Path, world: Path) -> None:
    project = scratch.make(tmp_path, real=True)
    for folder in ("data/shards", "data/codes", "models/published", "models/tokenizer", "pictures"):
        shutil.copytree(world / folder, project / folder)
    lines = {"shards.source": "pictures", "tokenizer.from": TOKENIZER, "generator.from": GENERATOR}
    tiny.apply(project / "params.yaml", tiny.OVERRIDES | lines | {"run.processes": 2, "generator.batch_size": 7})
    for stage in ("tokenizer", "text", "generator"):
        scratch.run(project, "bigr", "run", stage)
    assert files(project / "models/tokenizer") == files(project / TOKENIZER)
    assert files(project / "models/generator") == files(project / GENERATOR)
    assert [len(rows(project, stage)) for stage in ("tokenizer", "generator")] == [1, 1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_project_samples_the_models_of_another_to_the_byte_and_once(trained: Path, tmp_path: Path) -> None:
    first = scratch.copy(trained, tmp_path / "first")
    tiny.apply(first / "params.yaml", {"transcoder.steps": 0})
    scratch.run(first, "dvc", "repro", "samples")
    second = scratch.make_tiny(tmp_path / "second", transcoder__steps=0)
    shutil.copytree(first / "models/tokenizer", second / TOKENIZER)
    lines = [f"tokenizer.from={TOKENIZER}", f"generator.from={first / 'models/generator'}"]
    said = scratch.run(second, "dvc", "exp", "run", "-S", lines[0], "-S", lines[1])
    assert said.count("Running stage") == len(NAMES)
    for out in ("models/tokenizer", "models/generator", "models/bigr"):
        assert files(first / out) == files(second / out)
    for out in ("outputs/samples.npz", "outputs/samples.png"):
        assert (first / out).read_bytes() == (second / out).read_bytes()
    assert "Running stage" not in scratch.run(second, "dvc", "repro")
    assert config.load(second / "params.yaml").tokenizer.from_ == TOKENIZER

    shown = subprocess.run(
        ["dvc", "plots", "show"],
        cwd=second,
        env=scratch.environment(second),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "WARNING" not in shown.stderr
    page = Path(shown.stdout.strip().removeprefix("file://")).read_text()
    assert all(title in page for plot in config.read(second / "dvc.yaml")["plots"] for title in plot if " " in title)
