"""Whatever does not fit in params.yaml is one line that names the key, what it was, and what is allowed."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from bigr import config
from bigr.cli import program
from bigr.runtime.errors import BigrError

ROOT = Path(__file__).parents[1]
VALUES = config.read(ROOT / "params.yaml")
VALUES["dataset"]["val_count"] = 360
VALUES["tokenizer"]["from"] = VALUES["generator"]["from"] = None
VALUES["shards"] |= {"source": "data/dataset", "image_size": 16}
VALUES["tokenizer"] |= {"batch_size": 48, "steps": 500, "warmup_steps": 20, "horizontal_flip": False}
VALUES["tokenizer"] |= {"channel_multipliers": [1, 1, 2], "attention_resolutions": [4], "norm_first": True}
VALUES["generator"] |= {"dim": 128, "heads": 4, "diffusion_steps": 256, "target": "flip", "label_dropout": 0.1}
VALUES["generator"] |= {"batch_size": 64, "steps": 2000, "warmup_steps": 50}
VALUES["samples"] |= {"iterations": 8, "diffusion_steps": 20, "guidance_scale": 1.5}
VALUES["transcoder"] |= {"start": "joint", "target": "flip", "batch_size": 64, "steps": 100, "warmup_steps": 10}
VALUES["evaluation"] |= {"precision_recall_neighbours": 3, "reference_images": 50000}
GONE = object()
GATE = {"name": "samples.recall", "tolerance": 0.1, "relative": False, "limit": None}

MISFITS: list[tuple[dict[str, Any], str]] = [
    # a name or a type that does not fit
    ({"samples.guidence_scale": 2.0}, "samples.guidence_scale is not a setting; did you mean samples.guidance_scale?"),
    ({"sample": {}}, "sample is not a setting; did you mean samples?"),
    ({"tokenizer.from_": None}, "tokenizer.from_ is not a setting; did you mean tokenizer.from?"),
    ({"generator.fron": None}, "generator.fron is not a setting; did you mean generator.from?"),
    ({"generator.from": GONE}, "generator.from is missing; add it"),
    ({"generator.from": 3}, "generator.from must be a valid string…, got 3"),
    ({"generator.from": ""}, "generator.from must have at least…, got ''"),
    ({"run.colour": "red"}, "run.colour is not a setting; known here: device, precision, workers, cache_gb"),
    ({"generator.heads": GONE}, "generator.heads is missing; add it"),
    ({"codes": GONE}, "codes is missing; add it"),
    ({"codes": 5}, "codes must be a section with views, draws, batch_size…, got 5"),
    ({"codes": None}, "codes must be a section with views, draws, batch_size…, got null"),
    ({"generator.layers": "six"}, "generator.layers must be a valid integer…, got 'six'"),
    ({"generator.layers": 6.5}, "generator.layers must be a valid integer…, got 6.5"),
    ({"generator.layers": True}, "generator.layers must be a valid integer…, got True"),
    ({"generator.learning_rate": "fast"}, "generator.learning_rate must be a valid number…, got 'fast'"),
    ({"codes.draws": True}, "codes.draws must be a valid integer…, got True"),
    ({"codes.draws": -1}, "codes.draws must be greater than or equal to 0…, got -1"),
    ({"codes.drawn": False, "codes.draws": GONE}, "codes.drawn is not a setting; did you mean codes.draws?"),
    ({"run.worker": 2, "run.workers": GONE}, "run.worker is not a setting; did you mean run.workers?"),
    ({"code": {}, "codes": GONE}, "code is not a setting; did you mean codes?"),
    (
        {"codes.draws": 2, "tokenizer.quantizer": "lfq"},
        "codes.draws must be 0 where tokenizer.quantizer is lfq…, got 2",
    ),
    ({"shards.source": 3}, "shards.source must be a valid string…, got 3"),
    ({"tokenizer.channel_multipliers": 2}, "tokenizer.channel_multipliers must be a valid list…, got 2"),
    ({"tokenizer.channel_multipliers": [1, 0]}, "tokenizer.channel_multipliers[1] must be greater than 0…, got 0"),
    # a value out of range
    ({"seed": -1}, "seed must be greater than or equal to 0…, got -1"),
    ({"run.workers": 0}, "run.workers must be greater than 0…, got 0"),
    ({"run.device": "gpu"}, "run.device must be auto, cpu, mps, cuda or cuda:N…, got 'gpu'"),
    ({"run.precision": "float16"}, "run.precision must be 'auto', 'float32' or 'bfloat16'…, got 'float16'"),
    ({"dataset.image_size": 4}, "dataset.image_size must be greater than or equal to 8…, got 4"),
    (
        {"dataset.val_count": 5000},
        "dataset.val_count must be at most 1787 where dataset.name is digits (there are 1797)…, got 5000",
    ),
    ({"shards.val_fraction": 1.0}, "shards.val_fraction must be less than 1…, got 1.0"),
    ({"shards.source": ""}, "shards.source must have at least…, got ''"),
    ({"generator.learning_rate": 0}, "generator.learning_rate must be greater than 0…, got 0"),
    ({"generator.learning_rate": float("nan")}, "generator.learning_rate must be …, got nan"),
    ({"generator.betas": [0.9]}, "generator.betas must have at least…, got [0.9]"),
    ({"generator.schedule": "linear"}, "generator.schedule must be 'cosine' or 'constant'…, got 'linear'"),
    (
        {"samples.order": "best"},
        "samples.order must be 'entropy', 'margin', 'random', 'raster' or 'halton'…, got 'best'",
    ),
    ({"codes.views": ["mirror"]}, "codes.views[0] must be 'identity' or 'flip'…, got 'mirror'"),
    ({"codes.views": []}, "codes.views must have at least…, got []"),
    # a combination that cannot be
    ({"generator.heads": 5}, "generator.heads must be a divisor of generator.dim = 128, such as 1, 2, 4, 8…, got 5"),
    ({"generator.heads": 64}, "generator.heads must be a number that leaves each head a width divisible by 4…, got 64"),
    ({"generator.dim": 130}, "generator.dim must be a multiple of 16, 4 for each of generator.heads = 4…, got 130"),
    ({"shards.image_size": 18}, "shards.image_size must be a multiple of 4, the factor of…, got 18"),
    ({"tokenizer.attention_resolutions": [5]}, "tokenizer.attention_resolutions must be resolutions of…, got [5]"),
    (
        {"shards.image_size": 4, "samples.iterations": 1, "tokenizer.channel_multipliers": [1, 1, 1]},
        "tokenizer.base_channels must be larger, for 64 channels where an image is a single token (Group…, got 32",
    ),
    (
        {"shards.image_size": 4, "samples.iterations": 1, "tokenizer.channel_multipliers": [1, 2, 2]}
        | {"tokenizer.embed_dim": 32},
        "tokenizer.embed_dim must be larger, for 64 channels where an image is a single token (Group…, got 32",
    ),
    ({"tokenizer.base_channels": 40}, "tokenizer.base_channels must be a multiple of 32…, got 40"),
    ({"tokenizer.embed_dim": 40}, "tokenizer.embed_dim must be a multiple of 32 where tokenizer.norm_first…, got 40"),
    ({"tokenizer.perceptual_weight": 1.0}, "tokenizer.perceptual_weights must be a file with LPIPS'…, got null"),
    ({"codes.views": ["flip"]}, "codes.views must be a list that starts with identity…, got ['flip']"),
    (
        {"codes.views": ["identity", "identity"]},
        "codes.views must be a list without repeated views…, got ['identity', 'identity']",
    ),
    (
        {"codes.views": ["identity", "flip"]},
        "codes.views must be [identity] where dataset.name is digits (a mirrored digit…, got ['identity', 'flip']",
    ),
    (
        {"tokenizer.horizontal_flip": True},
        "tokenizer.horizontal_flip must be false where dataset.name is digits (a mirrored digit is no…, got True",
    ),
    ({"tokenizer.warmup_steps": 501}, "tokenizer.warmup_steps must be at most 500, the number of steps…, got 501"),
    ({"transcoder.warmup_steps": 101}, "transcoder.warmup_steps must be at most 100, the number of steps…, got 101"),
    (
        {"run.device": "cuda:0", "run.processes": 4},
        "run.device must be cuda, auto or cpu where run.proc…, got 'cuda:0'",
    ),
    ({"run.processes": 5}, "tokenizer.batch_size must be a multiple of run.processes = 5…, got 48"),
    ({"run.processes": 3}, "generator.batch_size must be a multiple of run.processes = 3…, got 64"),
    ({"transcoder.batch_size": 9, "run.processes": 2}, "transcoder.batch_size must be a multiple of run.proc…, got 9"),
    (
        {"generator.accumulate": 16, "run.processes": 8},
        "generator.batch_size must be a multiple of run.processes = 8 times generator.accumulate = 16, got 64",
    ),
    (
        {
            **{"tokenizer.accumulate": 2, "tokenizer.gan_weight": 1.0},
            **{"shards.image_size": 32, "tokenizer.attention_resolutions": []},
        },
        "tokenizer.accumulate must be 1 where tokenizer.gan_weight is > 0 (the adaptive weight…, got 2",
    ),
    (
        {"tokenizer.accumulate": 2, "tokenizer.quantizer": "lfq"},
        "tokenizer.accumulate must be 1 where tokenizer.lfq_entropy_weight is > 0 (the entropy…, got 2",
    ),
    ({"samples.iterations": 17}, "samples.iterations must be at most 16, the number of tokens (4×4)…, got 17"),
    ({"samples.diffusion_steps": 257}, "samples.diffusion_steps must be 2 to 256, the number of generator.…, got 257"),
    ({"samples.diffusion_steps": [30, 1]}, "samples.diffusion_steps must be 2 to 256, the number…, got [30, 1]"),
    (
        {"samples.diffusion_steps": [30, 4, 2]},
        "samples.diffusion_steps must be a number above 0, or two…, got [30, 4, 2]",
    ),
    ({"samples.diffusion_steps": "30,4"}, "samples.diffusion_steps must be a number above 0, or two…, got '30,4'"),
    (
        {"transcoder.start": "scratch", "transcoder.diffusion_steps": 8},
        "samples.diffusion_steps must be 2 to 8, the number of transcoder.diffusion_steps…, got 20",
    ),
    (
        {"generator.target": "mask", "samples.diffusion_steps": 17},
        "samples.diffusion_steps must be at most 16, the number of bits, where generator.target is mask…, got 17",
    ),
    ({"samples.bit_counts": [8, 8]}, "samples.diffusion_steps must be 2, the length of samples.bit_counts…, got 20"),
    (
        {"samples.bit_counts": [8, 8], "samples.diffusion_steps": 2},
        "samples.bit_counts must be empty where generator.target is flip, not mask…, got [8, 8]",
    ),
    (
        {"generator.target": "mask", "samples.bit_counts": [4, 8], "samples.diffusion_steps": 2},
        "samples.bit_counts must be numbers whose sum is 16, tokenizer.code_bits…, got [4, 8]",
    ),
    ({"samples.bit_counts": [9, 7]}, "samples.bit_counts must be numbers of which none is smaller…, got [9, 7]"),
    ({"samples.bit_counts": [0, 16]}, "samples.bit_counts[0] must be greater than 0…, got 0"),
    ({"transcoder.start": "scratch", "transcoder.steps": 0}, "transcoder.steps must be more than 0 where…, got 0"),
    ({"generator.use_labels": False}, "samples.guidance_scale must be 1.0 where generator.use_labels is fal…, got 1.5"),
    (
        {"generator.label_dropout": 0.0},
        "generator.label_dropout must be above 0 where samples.guidance_scale…, got 0.0",
    ),
    (
        {"generator.from": "ready", "generator.label_dropout": 0.0},  # the transcoder is still fitted
        "generator.label_dropout must be above 0 where samples.guidance_scale…, got 0.0",
    ),
    ({"generator.from": "ready", "samples.iterations": 17}, "samples.iterations must be at most 16, the num…, got 17"),
    ({"generator.from": "ready", "generator.use_labels": False}, "samples.guidance_scale must be 1.0 where…, got 1.5"),
    ({"generator.from": "ready", "run.processes": 5}, "tokenizer.batch_size must be a multiple of run.proc…, got 48"),
    (
        {"text.encoder": "clip"},
        "text.from must be a folder with the weights of clip, where that is text.encoder, got null",
    ),
    ({"text.encoder": "learned", "generator.text_heads": 3}, "generator.text_heads must be a divisor of gener…, got 3"),
    ({"text.encoder": "learned", "generator.text_dropout": 0.0}, "generator.text_dropout must be above 0 wh…, got 0.0"),
    ({"dataset.name": "none"}, "dataset.name must be digits, scenes or emoji where shards.source is…, got 'none'"),
    ({"dataset.name": "scenes", "codes.views": ["identity", "flip"]}, "codes.views must be [identity] where data…"),
    ({"samples.count": 3}, "samples.count must be more than evaluation.precision_recall_neighbours = 3…, got 3"),
    (
        {"evaluation.reference_images": 10, "evaluation.precision_recall_neighbours": 10},
        "evaluation.reference_images must be more than evaluation.precision_recall_neighbours = 10…, got 10",
    ),
    (
        {"dataset.val_count": 10, "evaluation.precision_recall_neighbours": 10},
        "dataset.val_count must be more than evaluation.precision_recall_neighbours = 10…, got 10",
    ),
    ({"evaluation.extractor": "inception-v3-compat"}, "evaluation.extractor_weights must be a file with…, got null"),
    ({"targets.samples": {"fd": 2.0}}, "targets.samples.fd must be a target of one of attributes.all, …, got 2.0"),
    ({"targets.sample": {"fid": 2.0}}, "targets.sample.fid must be a target of one of attributes.all, …, got 2.0"),
    ({"targets.samples": {"fid": "low"}}, "targets.samples.fid must be a valid number…, got 'low'"),
    ({"targets.samples": {"fid": float("nan")}}, "targets.samples.fid must be …, got nan"),
    ({"targets.samples": None}, "targets.samples must be a valid dictionary…, got null"),
    ({"targets": {"samples.fid": {"fid": 2.0}}}, "targets: names must be of letters, digits and _…, got 'samples.fid'"),
    ({"targets": {1: {"fid": 2.0}}}, "targets: names must be of letters, digits and _…, got 1"),
    ({"promotion.metrics": []}, "promotion.metrics must have at least…, got []"),
    ({"promotion.metrics": [GATE | {"name": "samples.fd"}]}, "promotion.metrics[0].name must be …, got 'samples.fd'"),
    (
        {"promotion.metrics": [GATE, GATE]},
        "promotion.metrics must be a list without repeated metrics, got [{'name': 'samples.recall', 'tolerance': 0.1…",
    ),
    ({"promotion.metrics": [GATE | {"tolerance": -1.0}]}, "promotion.metrics[0].tolerance must be greater…, got -1.0"),
    (
        {"promotion.metrics": [GATE | {"tollerance": 1.0}]},
        "promotion.metrics[0].tollerance is not a setting; did you mean promotion.metrics[0].tolerance?",
    ),
]


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """params.yaml's values with some of them replaced, added or gone."""
    values = copy.deepcopy(VALUES)
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = values[sections[0]] if sections else values
        if value is GONE:
            del section[name]
        else:
            section[name] = value
    return values


@pytest.mark.parametrize(("changes", "line"), MISFITS, ids=[" ".join(changes) for changes, _ in MISFITS])
def test_a_misfit_is_one_line_with_key_value_and_what_is_allowed(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(BigrError) as caught:
        config.validate(changed(changes))
    start, _, end = line.partition("…")
    assert str(caught.value).startswith(f"params.yaml: {start}")
    assert str(caught.value).endswith(end)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["./data/dataset", "data/dataset/", "data/x/../dataset", "data/dataset/train"])
@pytest.mark.parametrize(("key", "value"), [("codes.views", ["identity", "flip"]), ("tokenizer.horizontal_flip", True)])
def test_the_embedded_digits_are_known_however_their_folder_is_written(source: str, key: str, value: object) -> None:
    with pytest.raises(BigrError, match=f"{key} must be .*a mirrored digit is no digit"):
        config.validate(changed({"shards.source": source, key: value}))
    config.validate(changed({"shards.source": "pictures/data/dataset", key: value}))


@pytest.mark.parametrize(
    "changes",
    [
        {"transcoder.steps": 0},  # no training: neither warm-up nor batches
        {"transcoder.steps": 0, "transcoder.batch_size": 9, "run.processes": 2},
        {"generator.label_dropout": 0.0, "samples.guidance_scale": 1.0},
        {"generator.label_dropout": 0.0, "generator.use_labels": False, "samples.guidance_scale": 1.0},
        {"samples.count": 4, "tokenizer.warmup_steps": 500},
        {"samples.diffusion_steps": [256, 2]},
        {"generator.target": "mask", "samples.diffusion_steps": [1, 16]},
        {"generator.target": "mask", "samples.diffusion_steps": 4, "samples.bit_counts": [2, 2, 5, 7]},
        {"tokenizer.from": "ready", "tokenizer.batch_size": 7, "run.processes": 2},
        {"run.device": "cuda", "run.processes": 4},
        {"run.device": "cuda:3", "run.processes": 1},
        {"tokenizer.from": "ready", "tokenizer.perceptual_weight": 1.0, "tokenizer.gan_weight": 1.0},
        {"tokenizer.from": "ready", "tokenizer.horizontal_flip": True, "tokenizer.warmup_steps": 501},
        {"generator.from": "ready", "generator.batch_size": 7, "generator.warmup_steps": 2001, "run.processes": 2},
        {"generator.from": "ready", "generator.label_dropout": 0.0, "transcoder.steps": 0},
        {"targets": {}},
        {"targets": {"samples": {"fid": 2}, "probe": {"best_top1": 0.675}}},
    ],
    ids=str,
)
def test_settings_that_a_stage_can_do_with_fit(changes: dict[str, Any]) -> None:
    config.validate(changed(changes))


def test_the_files_that_are_read_are_those_that_are_needed() -> None:
    changes = {"shards.source": "pictures", "evaluation.extractor": "inception-v3-compat"}
    changes |= {"tokenizer.perceptual_weight": 1.0, "tokenizer.perceptual_weights": "vgg", "generator.from": "model.pt"}
    needed = {"shards.source": "pictures", "generator.from": "model.pt", "evaluation.extractor_weights": "inception"}
    changes["evaluation.extractor_weights"] = "inception"
    assert config.validate(changed(changes)).files == needed | {"tokenizer.perceptual_weights": "vgg"}
    assert config.validate(changed(changes | {"tokenizer.from": "ae"})).files == needed | {"tokenizer.from": "ae"}
    assert config.validate(changed({"evaluation.extractor_weights": "inception"})).files == {}


def test_records_name_the_keys_as_the_file_does() -> None:
    assert config.validate(VALUES).model_dump()["tokenizer"].keys() == VALUES["tokenizer"].keys()


def test_several_misfits_are_as_many_lines() -> None:
    with pytest.raises(BigrError) as caught:
        config.validate(changed({"seed": "zero", "run.workers": 0, "codes.draws": -1}))
    lines = str(caught.value).splitlines()
    assert [line.split()[1] for line in lines] == ["seed", "run.workers", "codes.draws"]


def test_the_settings_of_the_project_fit() -> None:
    settings = config.load(ROOT / "params.yaml")
    assert settings.grid * settings.tokenizer.downsampling == settings.shards.image_size


def test_settings_cannot_be_changed_and_have_no_defaults() -> None:
    settings = config.load(ROOT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 1
    for section in (config.Settings, *config.Settings.__annotations__.values()):
        fields = getattr(section, "model_fields", {})
        assert all(field.is_required() for field in fields.values())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: [1\nrun: 2\n", "params.yaml: line 2, column "),
        ("a: 1\na: 2\n", "params.yaml: line 2, column 1: not valid YAML: "),
        ("- 1\n", "params.yaml: must hold a mapping of sections, got [1]"),
        ("", "params.yaml: must hold a mapping of sections, got null"),
    ],
)
def test_a_file_that_is_no_mapping_is_one_line_with_the_place(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(BigrError) as caught:
        config.load(tmp_path / "params.yaml")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(BigrError, match=r"none\.yaml: no such file"):
        config.load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BigrError, match=r"binary\.yaml: "):
        config.load(tmp_path / "binary.yaml")


def test_the_schema_for_editors_takes_the_recipes_and_refuses_misspelt_keys() -> None:
    schema = json.loads(CliRunner().invoke(program.app, ["schema"]).stdout)
    for path in (ROOT / "params.yaml", *(ROOT / "recipes").glob("*.yaml")):
        values = config.read(path)
        jsonschema.validate(values, schema)
        with pytest.raises(jsonschema.ValidationError, match="stepz"):
            jsonschema.validate(values | {"generator": {**values["generator"], "stepz": 3}}, schema)
