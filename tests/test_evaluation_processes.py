"""The evaluation stage in several processes: the metrics of one, whatever is trained, drawn or fails in which."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bigr.data.shards import ShardIndex, first_captions
from bigr.evaluation.evaluation_parts import NotApplicable, at_once
from bigr.evaluation.imagesets.image_stream import split_images
from bigr.interop.folders import model_hash, save
from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.runtime.context import Context
from bigr.runtime.dotted_keys import flatten
from bigr.runtime.errors import BigrError
from bigr.stages import encode_codes, evaluate_model, pack_shards, write_dataset
from tests import worlds
from tests.groups import run_processes

SAMPLES, TRAIN_SAMPLES, ZERO_SHOT = 30, 11, 5


def scenes() -> Any:
    """Settings of small scenes, under which every part of the evaluation is measured, in batches that do not divide."""
    return worlds.settings(
        run__workers=1,
        run__device="cpu",
        dataset__name="scenes",
        dataset__train_count=60,
        dataset__val_count=36,
        evaluation__batch_size=7,
        evaluation__zero_shot_images=ZERO_SHOT,
        evaluation__classifier_steps=2,
        evaluation__judge_steps=2,
        evaluation__scene_reader_steps=2,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captioned scenes, models of classes that have learnt nothing, and held-out images as the samples of captions."""
    root, settings = tmp_path_factory.mktemp("scenes"), scenes()
    for stage in (write_dataset, pack_shards):
        stage.run(settings, Context(root))
    torch.manual_seed(0)
    save(root / "models" / "tokenizer", Tokenizer(TokenizerConfig.of(settings.tokenizer, image_size=16)))
    encode_codes.run(settings, Context(root))
    shards = ShardIndex.load(root / "data" / "shards")
    shape = BiGRConfig(
        settings.tokenizer.code_bits, settings.grid, len(shards.classes), 32, 2, 2, 32, 1, ffn_multiple_of=32
    )
    model = BiGR(shape)
    for parameter in model.parameters():  # the zeros of the initialisation would hide what depends on what
        nn.init.normal_(parameter, std=0.2)
    save(root / "models" / "bigr", model, tokenizer=model_hash(root / "models" / "tokenizer"))

    def some(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        images = split_images(root / "data" / "shards", split, count, 1).first(count, count)
        return images.permute(0, 2, 3, 1).numpy(), np.array(first_captions(shards, split, count))

    images, texts = some("val", SAMPLES)
    train_images, train_texts = some("train", TRAIN_SAMPLES)
    labels = np.arange(SAMPLES) % len(shards.classes)
    (root / "outputs").mkdir()
    np.savez(
        root / "outputs" / "samples.npz",
        arr_0=images,
        arr_1=labels,
        texts=texts,
        train_images=train_images,
        train_texts=train_texts,
    )
    return root


@pytest.fixture(scope="module")
def one(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after an evaluation in one process."""
    root = tmp_path_factory.mktemp("one") / "project"
    shutil.copytree(project, root)
    evaluate_model.run(scenes(), Context(root))
    return root


def written(root: Path, name: str) -> Any:
    return json.loads((root / "outputs" / name).read_text())


EVALUATE = """
import pathlib, sys
import torch
from bigr.runtime.context import Context
from bigr.runtime.distributed import process_group
from bigr.stages import evaluate_model
from tests.test_evaluation_processes import scenes

with process_group(torch.device("cpu")):
    evaluate_model.run(scenes(), Context(pathlib.Path(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_two_and_four_processes_measure_what_one_does(project: Path, one: Path, tmp_path: Path, processes: int) -> None:
    root = tmp_path / "project"
    shutil.copytree(project, root)
    run_processes(processes, EVALUATE, str(root))
    alone, several = (flatten(written(folder, "metrics.json")) for folder in (one, root))
    assert several.keys() == alone.keys() and several == pytest.approx(alone, rel=1e-9)
    assert {"retrieval.train_top1", "attributes.reader_accuracy", "zero_shot.edit_label_agreement"} <= alone.keys()
    for name in ("evaluation-parts.json", "protocol.json"):
        assert written(root, name) == written(one, name)
    for name in ("neighbours.png", "confusion.png", "bits.png"):
        assert (root / "outputs" / "plots" / name).read_bytes() == (one / "outputs" / "plots" / name).read_bytes()


FAIL = """
import pathlib, sys
import torch
from bigr.evaluation import measurement
from bigr.evaluation.zero_shot import ZeroShot
from bigr.runtime.context import Context
from bigr.runtime.distributed import process_group, rank
from bigr.runtime.errors import BigrError
from bigr.stages import evaluate_model
from tests.test_evaluation_processes import scenes

def broken(*_, **__):
    raise RuntimeError("a defect of the code")

measurement.train_judge = broken  # a training of the second process
with process_group(torch.device("cpu")):
    if rank() == 1:
        ZeroShot.enrichment = broken
    try:
        evaluate_model.run(scenes(), Context(pathlib.Path(sys.argv[1])))
    except BigrError:
        sys.exit(3)
"""


@pytest.mark.slow
def test_what_fails_in_one_process_is_named_and_the_others_measure_the_rest(
    project: Path, one: Path, tmp_path: Path
) -> None:
    root = tmp_path / "project"
    shutil.copytree(project, root)
    run_processes(2, FAIL, str(root), statuses=(3, 0))  # the first one reports
    failed = written(root, "evaluation-parts.json")["failed"]
    assert failed.keys() == {"retrieval", "zero_shot.enrichment"}
    assert all("in another process: a defect of the code" in failure["reason"] for failure in failed.values())
    rest, alone = (flatten(written(folder, "metrics.json")) for folder in (root, one))
    assert not [name for name in rest if name.startswith("retrieval.") or "enrich" in name]
    assert rest == pytest.approx({name: alone[name] for name in rest}, rel=1e-9) and len(rest) > 40


AT_ONCE = """
import json, pathlib, sys
import torch
from bigr.runtime.distributed import process_group, rank
from tests.test_evaluation_processes import outcomes

with process_group(torch.device("cpu")):
    (pathlib.Path(sys.argv[1]) / f"{rank()}").write_text(json.dumps(outcomes()))
"""


def outcomes() -> tuple[list[str], dict[str, list[str]]]:
    """Which pieces of work this process did, and what became of all."""
    done: list[str] = []

    def work(name: str, error: Exception | None) -> str:
        done.append(name)
        if error is not None:
            raise error
        return f"result of {name}"

    errors = {"a": None, "b": BigrError("name it"), "c": NotApplicable("no text"), "d": ValueError("bad"), "e": None}
    told = {}
    for name, attempt in at_once({name: partial(work, name, error) for name, error in errors.items()}).items():
        try:
            told[name] = ["", attempt.result()]
        except Exception as error:
            told[name] = [type(error).__name__, str(error)]
    return done, told


@pytest.mark.slow
def test_work_at_once_is_done_by_one_process_each_and_known_to_all(tmp_path: Path) -> None:
    run_processes(3, AT_ONCE, str(tmp_path))
    found = [json.loads((tmp_path / str(number)).read_text()) for number in range(3)]
    assert [done for done, _ in found] == [["a", "d"], ["b", "e"], ["c"]]
    everywhere = {"a": ["", "result of a"], "b": ["BigrError", "name it"], "c": ["NotApplicable", "no text"]}
    for number, (_, told) in enumerate(found):
        failed = ["ValueError", "bad"] if number == 0 else ["RuntimeError", "in another process: bad"]
        assert told == {**everywhere, "d": failed, "e": ["", "result of e"]}
    alone, told = outcomes()
    assert alone == list("abcde") and told["d"] == ["ValueError", "bad"]
