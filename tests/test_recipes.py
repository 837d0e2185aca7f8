"""recipes/: what differs from the digits: for the published sizes, with the paper's settings, and for other data."""

import functools
import itertools
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bigr import config
from bigr.cli import program
from bigr.config import recipes
from bigr.config.reading import chain, parse
from bigr.models.autoencoder.tokenizer import TokenizerConfig
from bigr.models.masked.generator import BiGRConfig
from bigr.models.presets import PRESETS, TOKENIZERS
from bigr.pipeline import check
from bigr.pipeline.planning import image_counts
from bigr.pipeline.runner import function_of
from bigr.pipeline.stage_table import NAMES
from bigr.runtime.context import Context
from bigr.runtime.errors import BigrError
from tests import tiny, worlds
from tests.text_encoders import PLACES, write_clip

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "recipes"
SHAPES = {
    "imagenet256-L-d24.yaml": ("256", "L", 24),
    "imagenet256-XL-d24.yaml": ("256", "XL", 24),
    "imagenet256-XXL-d24.yaml": ("256", "XXL", 24),
    "imagenet256-XXL-d32.yaml": ("256", "XXL", 32),
    "imagenet512-L-d32.yaml": ("512", "L-512", 32),
    "imagenet256-L-d20-representation.yaml": ("256", "L", 20),
}
"""Of each recipe: the tokenizer's and the generator's preset, and K."""
IMAGENET = 1_281_167
TABLE_7 = {"L": (20, 0.17), "XL": (25, 0.25), "XXL": (25, 0.30), "L-512": (20, 0.17)}
PAPER = {
    "imagenet256-L-d24.yaml": {"samples": {"fid": 2.71, "isc": 275.7}},
    "imagenet256-XL-d24.yaml": {"samples": {"fid": 2.49, "isc": 278.8}},
    "imagenet256-XXL-d24.yaml": {"samples": {"fid": 2.36, "isc": 277.2}},
    "imagenet256-L-d20-representation.yaml": {"probe": {"best_top1": 0.675}},
}
"""Results of the paper, under their names in metrics.json."""

OTHERS = ("emoji.yaml", "scenes.yaml", "fashion-mnist.yaml", "text-256-L.yaml")
"""Recipes that are not of the paper's models."""

BASE = "digits.yaml"
"""The recipe with every setting."""

every_recipe = pytest.mark.parametrize("name", SHAPES)
any_recipe = pytest.mark.parametrize("name", [*SHAPES, *OTHERS])


@functools.cache
def load(name: str) -> config.Settings:
    """The recipe's settings."""
    return config.load(FOLDER / name)


def keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys of a mapping, in its order."""
    found = []
    for key, value in values.items():
        named = isinstance(value, dict) and key not in ("targets", "presets")  # metrics; what differs
        found += [prefix + key, *(keys(value, f"{prefix}{key}.") if named else [])]
    return found


def test_there_is_a_recipe_for_each_published_model_and_those_of_other_data() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted([*SHAPES, *OTHERS, BASE])


def test_params_yaml_starts_as_the_recipe_that_all_others_extend() -> None:
    assert (FOLDER / BASE).read_text() == (ROOT / "params.yaml").read_text()
    for name in (*SHAPES, *OTHERS):
        assert chain(FOLDER / name)[-1].name == BASE


@every_recipe
def test_a_recipe_passes_the_check_once_the_files_that_it_names_are_there(name: str, tmp_path: Path) -> None:
    settings = load(name)
    with pytest.raises(BigrError, match=r"shards\.source is data/imagenet"):
        check.check_files(tmp_path, settings)
    (tmp_path / settings.shards.source).mkdir(parents=True)
    for file in (settings.tokenizer.perceptual_weights, settings.evaluation.extractor_weights):
        path = tmp_path / str(file)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    check.check_files(tmp_path, settings)


@any_recipe
def test_a_recipe_names_only_what_differs_from_the_file_that_it_extends(name: str) -> None:
    recipe = parse(FOLDER / name)
    base = config.read(FOLDER / recipe.pop("extends"))
    comments = {match[1] for match in re.finditer(r"^  (\w+):.* # ", (FOLDER / name).read_text(), re.MULTILINE)}
    for section, values in recipe.items():
        assert values != base[section]
        if section not in ("targets", "promotion"):
            assert not {key for key in values if values[key] == base[section][key] and key not in comments}


@any_recipe
def test_a_recipe_is_written_with_every_setting_in_the_order_of_params_yaml(name: str, tmp_path: Path) -> None:
    (tmp_path / "written.yaml").write_text(recipes.composed(FOLDER / name))
    written = parse(tmp_path / "written.yaml")
    assert keys(written) == keys(config.read(ROOT / "params.yaml"))
    assert written == config.read(FOLDER / name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with params.yaml and the recipes, which the process works in."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(FOLDER, tmp_path / "recipes")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "1"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(*arguments: str) -> str:
    """What `bigr recipe …` prints. Raises `BigrError` as the program's `main` sees it."""
    result = CliRunner().invoke(program.app, ["recipe", *arguments], catch_exceptions=False)
    return result.output


def test_a_recipe_after_another_gives_what_it_gives_on_its_own(project: Path) -> None:
    params = project / "params.yaml"
    every = [*SHAPES, *OTHERS, BASE]
    alone = {name: recipes.composed(FOLDER / name) for name in every}
    for before, name in [*itertools.pairwise([*every, *every]), *itertools.pairwise(reversed(every))]:
        params.write_text(alone[before])
        recipe(Path(name).stem, "--force")
        assert params.read_text() == alone[name], (before, name)


def test_a_recipe_keeps_settings_that_it_does_not_name_and_their_comments(project: Path) -> None:
    (project / "own.yaml").write_text("# Mine\n\nextends: params.yaml\n\nsamples:\n  count: 7 # few\n  iterations: 3\n")
    before = (project / "params.yaml").read_text()
    recipe("own.yaml")
    after = (project / "params.yaml").read_text()
    assert after.startswith("# Mine\n\nseed: 0\n")
    assert "  count: 7 # few\n" in after and "  iterations: 3 # n, at most the number of tokens\n" in after
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert len(changed) == 3


def test_changes_of_params_yaml_that_git_does_not_hold_are_not_lost(project: Path) -> None:
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("seed: 0", "seed: 5"))
    with pytest.raises(BigrError, match=r"params\.yaml has changes that are not in git: .*--force"):
        recipe("imagenet256-L-d24")
    assert config.load(params).seed == 5
    recipe("imagenet256-L-d24", "--force")
    assert config.load(params).generator.dim == 1024


def test_a_params_yaml_that_is_in_no_repository_is_not_lost(project: Path) -> None:
    shutil.rmtree(project / ".git")
    with pytest.raises(BigrError, match="not in git"):
        recipe("imagenet256-L-d24")
    assert config.load(project / "params.yaml").generator.dim == 128
    recipe("imagenet256-L-d24", "--force")
    assert config.load(project / "params.yaml").generator.dim == 1024


def test_recipes_are_listed_with_what_they_are_for(project: Path) -> None:
    listed = recipe()
    assert all(f"{Path(name).stem} " in listed for name in SHAPES)
    assert "BiGR-XXL with K = 32" in listed
    with pytest.raises(BigrError, match=r"imagenet256-M: .*imagenet256-L-d24"):
        recipe("imagenet256-M")


def test_a_folder_without_recipes_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BigrError, match="no recipes there"):
        recipe()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("extends: own.yaml\n", "circle"),
        ("extends: gone.yaml\n", "gone.yaml: no such file"),
        ("extends: [params.yaml]\n", "must name one file"),
        ("extends: params.yaml\nsamples:\n  cuont: 7\n", "samples.cuont"),
        ("extends: params.yaml\nsamples: {count: 7}\n", "block style"),
    ],
)
def test_a_recipe_that_is_wrong_changes_nothing(project: Path, text: str, fault: str) -> None:
    (project / "own.yaml").write_text(text)
    before = (project / "params.yaml").read_text()
    with pytest.raises(BigrError, match=re.escape(fault)):
        recipe("own.yaml")
    assert (project / "params.yaml").read_text() == before


def test_params_yaml_extends_nothing_since_dvc_reads_it(project: Path) -> None:
    (project / "params.yaml").write_text("extends: recipes/imagenet256-L-d24.yaml\n")
    with pytest.raises(BigrError, match=r"params\.yaml: extends: .*bigr recipe"):
        config.load(project / "params.yaml")


def test_the_recipe_of_captioned_images_runs_with_a_clip_of_its_own(tmp_path: Path) -> None:
    """Every stage, with tiny networks on tiny images, whose texts are read by a CLIP, which also judges."""
    worlds.write_captioned(tmp_path / "data" / "captioned", size=20)
    write_clip(tmp_path / "weights" / "clip-vit-large-patch14")
    (tmp_path / "params.yaml").write_text(recipes.composed(FOLDER / "text-256-L.yaml"))
    tiny.apply(
        tmp_path / "params.yaml",
        tiny.OVERRIDES
        | {"run.device": "cpu", "run.processes": 1, "run.workers": 1, "codes.draws": 1, "text.tokens": PLACES}
        | {"tokenizer.perceptual_weight": 0.0, "tokenizer.gan_weight": 0.0, "tokenizer.schedule": "constant"}
        | {"tokenizer.warmup_steps": 0, "generator.warmup_steps": 0, "transcoder.steps": 2}
        | {"evaluation.extractor": "classifier", "evaluation.probe_batch_size": 16, "samples.order": "entropy"}
        | {"samples.count": 8, "samples.train_captions": 12, "evaluation.zero_shot_images": 2},
    )
    settings = config.load(tmp_path / "params.yaml")
    assert settings.text.encoder == "clip" and settings.codes.views == ["identity", "flip"]
    for name in NAMES:
        function_of(name)(settings, Context(tmp_path, "f"))
    metrics = config.read(tmp_path / "outputs" / "metrics.json")
    assert {"train_top1", "train_clip_score"} <= metrics["retrieval"].keys()
    parts = config.read(tmp_path / "outputs" / "evaluation-parts.json")
    assert not parts["failed"]
    measured = image_counts.disk(settings, tmp_path)
    assert measured.text_basis == "measured in data/text" and 0 < measured.text < (PLACES + 1) * 16 * 2 + 8


def test_the_recipe_of_emoji_is_of_held_out_and_training_captions() -> None:
    settings = load("emoji.yaml")
    assert settings.emoji and settings.text.encoder == "learned" and settings.grid == 8
    assert settings.images_drawn == 306 + 500 and "train_top1" in settings.targets["retrieval"]


def test_what_the_captioned_recipe_says_of_the_disk_is_what_its_plan_says(tmp_path: Path) -> None:
    disk = image_counts.disk(load("text-256-L.yaml"), tmp_path)
    assert disk.text == 78 * 768 * 2 + 8
    shards, codes, texts = (f"{size * 1e6 / 2**30:.2f} GiB" for size in (disk.shard, disk.code, disk.text))
    text = (FOLDER / "text-256-L.yaml").read_text()
    assert f"{shards} of shards, {codes} of codes, at most {texts} of texts" in text


@every_recipe
def test_a_recipes_networks_are_the_published_ones(name: str) -> None:
    settings = load(name)
    images, model, code_bits = SHAPES[name]
    ours = TokenizerConfig.of(settings.tokenizer, image_size=settings.shards.image_size)
    assert ours == replace(TOKENIZERS[images], code_bits=code_bits)
    shape = BiGRConfig.of(settings.generator, code_bits=ours.code_bits, grid=ours.grid, num_classes=1000)
    assert shape == replace(PRESETS[model], code_bits=code_bits)
    assert settings.tokenizer.from_ is None
    assert settings.generator.from_ is None
    assert settings.transcoder.start == "joint"
    assert settings.transcoder.steps == 0


@every_recipe
def test_a_recipe_trains_for_as_long_and_as_fast_as_the_paper(name: str) -> None:
    settings, model = load(name), SHAPES[name][1]
    section = settings.generator
    assert section.batch_size == (1024 if model.startswith("L") else 512)
    assert section.steps == math.ceil(400 * IMAGENET / section.batch_size)
    assert (section.learning_rate, section.schedule, section.warmup_steps) == (1e-4, "constant", 0)
    assert (section.betas, section.weight_decay, section.grad_clip) == ([0.9, 0.95], 0.02, 1.0)
    assert (section.ema_decay, section.dropout, section.label_dropout) == (0.9999, 0.1, 0.1)
    assert (section.use_labels, section.noise_draws, settings.run.precision) == (True, 1, "bfloat16")
    assert settings.codes.views == ["identity", "flip"]
    assert settings.codes.draws > 1  # drawn bits, others in the next epoch


@every_recipe
def test_a_recipe_trains_the_tokenizer_by_the_papers_loss(name: str) -> None:
    section = load(name).tokenizer
    assert section.learning_rate == pytest.approx(4.5e-6 * section.batch_size)
    assert (section.reconstruction_weight, section.perceptual_weight, section.gan_weight) == (1.0, 1.0, 1.0)
    assert (section.gan_start, section.gan_base_channels) == (30_001, 64)
    assert section.steps == {24: 1_000_000, 20: 1_000_000, 32: 720_000 if "512" in name else 950_000}[SHAPES[name][2]]


@every_recipe
def test_what_a_recipe_says_of_the_disk_is_what_its_plan_says(name: str, tmp_path: Path) -> None:
    text, disk = recipes.composed(FOLDER / name), image_counts.disk(load(name), tmp_path)
    shards, codes = (f"{round(size * (IMAGENET + 50_000) / 2**30)} GiB" for size in (disk.shard, disk.code))
    assert f"# Disk: {shards} of shards and {codes} of codes" in text
    assert re.search(rf"draws: .*{codes}", text)


@every_recipe
def test_a_recipe_samples_by_table_7(name: str) -> None:
    samples = load(name).samples
    assert (samples.iterations, samples.gumbel_temperature) == TABLE_7[SHAPES[name][1]]
    assert (samples.guidance_scale, samples.diffusion_steps, samples.count) == (2.5, 100, 50_000)
    assert (samples.order, samples.deterministic_bits, samples.temperature) == ("margin", False, 1.0)


@every_recipe
def test_a_recipes_targets_are_the_papers_results(name: str) -> None:
    assert load(name).targets == PAPER.get(name, {})


@every_recipe
def test_what_a_recipe_says_of_a_published_file_is_the_file_of_its_size(name: str) -> None:
    images, model, bits = SHAPES[name]
    step = {(24, "256"): 1_000_000, (32, "256"): 950_000, (32, "512"): 720_000}.get((bits, images))
    size = model.split("-")[0]
    files = [f"binaryae_ema_{step}.th", f"bigr_{size}_d{bits}{'_512' if images == '512' else ''}.pt"] if step else []
    assert re.findall(r"# or the published one: weights/(\S+)", recipes.composed(FOLDER / name)) == files


@every_recipe
def test_a_recipes_first_lines_say_how_to_use_it(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert f"#   bigr recipe {Path(name).stem}\n#   bigr check && bigr plan" in text
    assert f"K = {SHAPES[name][2]}" in text.splitlines()[0]
    assert all(len(line) <= 120 for line in text.splitlines())
