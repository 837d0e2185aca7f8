"""Text-to-image from captioned scenes to images: the stages, bigr.load and the shell, with networks of no training."""

import base64
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import bigr
from bigr import config
from bigr.cli import program
from bigr.data.codes import CodesDataset
from bigr.data.shards import ShardIndex, read_captions
from bigr.data.texts import Texts, write_text_index
from bigr.interop.folders import load_config, text_encoder_of
from bigr.models.masked.generator import BiGR
from bigr.pipeline.check import check_files, check_models
from bigr.pipeline.measurable import check_promotion
from bigr.runtime.context import Context
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_json
from bigr.stages import (
    draw_samples,
    encode_codes,
    encode_texts,
    evaluate_model,
    pack_shards,
    train_generator,
    train_tokenizer,
    train_transcoder,
    write_dataset,
)
from bigr.text.encoder import as_given, encoder_hash
from bigr.text.encoder_folder import load_encoder
from tests import tiny
from tests.scratch import ROOT
from tests.test_training import run_two_processes
from tests.text_encoders import write_clip
from tests.worlds import settings as tiny_settings
from tests.worlds import write_captioned

SCENES: dict[str, Any] = {
    "dataset.name": "scenes",
    "dataset.train_count": 48,
    "dataset.val_count": 16,
    "shards.images_per_shard": 12,
    "text.encoder": "learned",
    "text.tokens": 10,
    "text.vocabulary": 300,
    "generator.text_layers": 1,
    "generator.text_heads": 2,
    "samples.count": 20,
    "samples.train_captions": 6,
}


def settings(**changes: object) -> config.Settings:
    return tiny_settings(**{key.replace(".", "__"): value for key, value in (SCENES | changes).items()})


def captions(root: Path, split: str) -> list[str]:
    return [text for shard in ShardIndex.load(root / "data" / "shards").shards(split) for text in read_captions(shard)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after all stages but the evaluation."""
    root = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "params.yaml", root)
    tiny.apply(root / "params.yaml", tiny.OVERRIDES | SCENES)
    context = Context(root, "f")
    for stage in (write_dataset, pack_shards, train_tokenizer, encode_codes, encode_texts):
        stage.run(settings(), context)
    for stage in (train_generator, train_transcoder, draw_samples):
        stage.run(settings(), context)
    return root


def test_every_caption_is_read_once_in_the_order_of_its_image(project: Path) -> None:
    encoder = load_encoder(project / "models" / "text", torch.device("cpu"))
    for split, count in (("train", 48), ("val", 16)):
        codes = CodesDataset.open(project / "data" / "codes", split, None).with_texts(project / "data" / "text", split)
        texts = captions(project, split)
        assert len(texts) == len(codes) == count and all(texts)
        places = torch.tensor([count - 1, 0, 7])
        found = codes.conditions(places, torch.zeros(3))
        assert torch.equal(found, as_given(encoder, [texts[place] for place in places]))
    assert len(list((project / "data" / "text").glob("train-*.safetensors"))) > 1
    assert not (project / "checkpoints" / "text").exists()


def test_the_generator_knows_its_encoder(project: Path) -> None:
    for name in ("generator", "bigr"):
        folder = project / "models" / name
        assert text_encoder_of(folder) == encoder_hash(project / "models" / "text")
        shape = load_config(folder, BiGR)
        assert (shape.text_tokens, shape.text_layers, shape.text_heads) == (10, 1, 2) and shape.text_vocabulary > 256


def test_samples_are_of_held_out_captions(project: Path) -> None:
    with np.load(project / "outputs" / "samples.npz", allow_pickle=False) as file:
        assert list(file["texts"]) == [*captions(project, "val"), *captions(project, "val")[:4]]
        labels, images = file["arr_1"], file["arr_0"]
    assert images.shape == (20, 16, 16, 3) and np.array_equal(labels[:4], labels[16:]) and set(labels) <= {0, 1, 2, 3}
    with Image.open(project / "outputs" / "samples.png") as picture:
        assert picture.width > 10 * 16


def test_samples_of_prompts_have_no_class_and_are_those_of_bigr_load(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(project, root)
    (root / "prompts.txt").write_text("a large blue square\n\na red apple\n")
    asked = settings(**{"samples.prompts": "prompts.txt", "samples.count": 4})
    draw_samples.run(asked, Context(root, "f"))
    with np.load(root / "outputs" / "samples.npz", allow_pickle=False) as file:
        images, labels, texts = file["arr_0"], file["arr_1"], list(file["texts"])
    assert texts == ["a large blue square", "", "a red apple", "a large blue square"] and set(labels) == {-1}
    drawn = bigr.load(root, device="cpu").generate(texts, seed=asked.seed)
    assert all(np.array_equal(np.asarray(one), image) for one, image in zip(drawn, images, strict=True))
    assert not np.array_equal(images[0], images[3])


def test_samples_of_training_captions_are_apart_and_those_of_bigr_load(project: Path) -> None:
    with np.load(project / "outputs" / "samples.npz", allow_pickle=False) as file:
        images, texts = file["train_images"], list(file["train_texts"])
    assert images.shape == (6, 16, 16, 3) and texts == captions(project, "train")[::8]
    drawn = bigr.load(project, device="cpu").generate([""] * 20 + texts, seed=settings().seed)[20:]
    assert all(np.array_equal(np.asarray(one), image) for one, image in zip(drawn, images, strict=True))


def test_training_captions_are_of_a_few_shards_that_are_spread_or_of_as_many_as_are_needed(project: Path) -> None:
    index, every = ShardIndex.load(project / "data" / "shards"), captions(project, "train")  # four shards of 12
    first, third = every[:12], every[24:36]
    assert draw_samples.spread_captions(index, "train", 4, fewest_shards=1) == first[::3]
    assert draw_samples.spread_captions(index, "train", 4, fewest_shards=2) == [*first, *third][::6]
    assert draw_samples.spread_captions(index, "train", 24, fewest_shards=1) == [*first, *third]
    assert draw_samples.spread_captions(index, "train", 50, fewest_shards=1) == every


def test_more_samples_of_training_captions_than_there_are_start_again_and_none_is_none(
    project: Path, tmp_path: Path
) -> None:
    shutil.copytree(project, tmp_path / "project")
    for count in (0, 50):
        chosen = settings(**{"samples.train_captions": count, "samples.count": 4, "samples.iterations": 1})
        draw_samples.run(chosen, Context(tmp_path / "project", "f"))
        with np.load(tmp_path / "project" / "outputs" / "samples.npz", allow_pickle=False) as file:
            assert file["arr_0"].shape[0] == 4 and ("train_texts" in file) == (count > 0)
            if count:
                assert list(file["train_texts"]) == [*captions(project, "train"), *captions(project, "train")[:2]]


def test_retrieval_and_attributes_are_measured_of_scenes(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(project, root)
    chosen = settings(**{"evaluation.zero_shot_images": 0, "evaluation.probe_images": 20})
    evaluate_model.run(chosen, Context(root, "f"))
    metrics = config.read(root / "outputs" / "metrics.json")
    shares = {"top1", "train_top1", "judge_accuracy", "judge_train_accuracy", "reconstructions_top1"}
    assert metrics["retrieval"].keys() == shares - {"train_top1"}  # of six captions there is no ten
    assert all(0 <= metrics["retrieval"][name] <= 1 for name in shares - {"train_top1"})
    assert {"reader_accuracy", "object", "colour", "all", "held_out_all"} <= metrics["attributes"].keys()
    assert all(0 <= value <= 1 for value in metrics["attributes"].values())
    about = config.read(root / "outputs" / "protocol.json")
    assert about["judge"]["name"] == "trained" and about["extractor"]["name"] == "classifier"
    parts = config.read(root / "outputs" / "evaluation-parts.json")
    assert "different captions" in parts["left_out"]["retrieval.train_top1"] and not parts["failed"]
    assert config.read(root / "outputs" / "headline.json")["caption_top1"] == metrics["retrieval"]["top1"]


def test_clip_judges_where_the_settings_name_it(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(project, root)
    write_clip(root / "clip")
    chosen = settings(
        **{"evaluation.clip": "clip", "evaluation.zero_shot_images": 0, "samples.train_captions": 16},
    )
    draw_samples.run(chosen, Context(root, "f"))
    evaluate_model.run(chosen, Context(root, "f"))
    retrieval = config.read(root / "outputs" / "metrics.json")["retrieval"]
    assert {"top1", "train_top1", "clip_score", "train_clip_score", "real_clip_score"} <= retrieval.keys()
    assert config.read(root / "outputs" / "protocol.json")["judge"]["name"] == "clip"
    assert settings(**{"evaluation.clip": "clip"}).files["evaluation.clip"] == "clip"
    with pytest.raises(BigrError, match=r"evaluation.clip is gone, which does not exist; put the folder of CLIP there"):
        check_files(root, settings(**{"evaluation.clip": "gone"}))
    (root / "file").touch()
    with pytest.raises(BigrError, match=r"evaluation.clip is file, which is not a folder of CLIP; name another"):
        check_files(root, settings(**{"evaluation.clip": "file"}))
    assert "evaluation.clip" not in settings(**{"evaluation.clip": "gone", "text.encoder": "none"}).files


def test_pictures_have_captions_below_their_images(project: Path) -> None:
    for name, columns in (("samples", 10), ("reconstructions", 8)):
        with Image.open(project / "outputs" / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("L"))
        assert pixels.shape[1] == columns * (112 + 8) + 8
        below = pixels[8 + 112 * (1 if name == "samples" else 2) + 7 :][:15]
        assert (below < 60).sum() > 50  # letters


def test_the_evaluation_leaves_out_what_needs_classes(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(project, root)
    (root / "prompts.txt").write_text("a large blue square\n")
    asked = settings(**{"samples.prompts": "prompts.txt", "evaluation.zero_shot_images": 4})
    draw_samples.run(asked, Context(root, "f"))
    evaluate_model.run(asked, Context(root, "f"))
    metrics = config.read(root / "outputs" / "metrics.json")
    assert {"fd_classifier", "over_floor"} <= metrics["samples"].keys()
    assert "label_agreement" not in metrics["samples"] and "label_agreement" in metrics["reconstructions"]
    assert {"inpaint_psnr", "enrich_label_agreement"} <= metrics["zero_shot"].keys()
    assert not {"edit_label_agreement", "interpolation_agreement"} & metrics["zero_shot"].keys()
    assert (
        "top1" not in metrics["retrieval"] and "judge_accuracy" in metrics["retrieval"]
    )  # one prompt: nothing to tell


def test_every_application_takes_a_text_where_it_takes_a_class(project: Path) -> None:
    model = bigr.load(project, device="cpu")
    none = model.generate([None, "", "\x00 \n"], seed=3)
    for place, one in enumerate(none):
        assert np.array_equal(one, model.generate([None] * 3, seed=3)[place])
    texts = [model.generate(text, seed=3, guidance_scale=1e9)[0] for text in ("a red circle", "two blue squares", "")]
    assert not np.array_equal(texts[0], texts[1]) and np.array_equal(texts[2], none[0])
    way = model.interpolate("a small red circle", "two large blue squares", 3, seed=1)
    assert len(way) == 3
    mask = np.zeros((16, 16), np.uint8)
    mask[8:] = 255
    for drawn in (model.edit(way[0], mask, "a red circle"), model.enrich(way[0], label="a red circle")):
        assert drawn[0].size == (16, 16)
    assert model.features(way[0]).shape == (1, 32)
    with pytest.raises(BigrError, match=r"^label: this model takes texts, not classes by their number, got 3"):
        model.generate(3)


def test_the_shell_draws_texts(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    long = "a red circle " * 1000
    result = CliRunner().invoke(
        program.app, ["generate", "a red circle", "赤い円", long, "--model", str(project), "--out", "out"]
    )
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert len(names) == 4 and "a_red_circle-seed0-1.png" in names


def test_the_page_takes_texts_with_captions_as_examples(project: Path) -> None:
    import gradio as gr

    from bigr.app import page
    from bigr.app.gallery import Dataset
    from bigr.app.links import Link
    from bigr.app.tasks import NO_CLASS, OWN, Tasks

    model, dataset = bigr.load(project, device="cpu"), Dataset(project / "data" / "shards")
    assert {name for _, name in dataset.examples} <= set(captions(project, "val"))
    tasks, how = Tasks(model, dataset), (0, 2, OWN, 2, 1.5, 2, 2)
    html = list(tasks.generate(["a red circle", "two <b>blue</b> squares"], *how))[-1]
    assert "a red circle" in html and "two &lt;b&gt;blue" in html and html.count("<figure>") == 4
    assert "no text · 1" in list(tasks.generate([], *how))[-1]
    assert "result done" in list(tasks.interpolate("a red circle", "a blue square", 3, 0, 1, *how[2:]))[-1]
    with pytest.raises(BigrError, match="at most 1000 characters"):
        list(tasks.generate(["a" * 1001], *how))
    with pytest.raises(BigrError, match="at most 1000 characters"):
        list(tasks.generate([3], *how))
    with gr.Blocks():
        free = page.asked(model, "Texts", dataset.examples, none="Any", multiselect=True)
    assert free.allow_custom_value and free.value == [NO_CLASS] and len(free.choices) > 1
    assert Link("Generate", {"texts": free}).read({"texts": "a, b\nc"}) == {free: ["a, b", "c"]}
    page.build(model, dataset)


def test_a_model_is_saved_packed_and_served_with_its_encoder(project: Path, tmp_path: Path) -> None:
    import mlflow.pyfunc

    from bigr.tracking.registry import package

    model = bigr.load(project, device="cpu")
    texts = ["a red circle", ""]
    drawn = [np.asarray(one) for one in model.generate(texts, seed=0)]
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved", device="cpu")
    assert all(map(np.array_equal, drawn, again.generate(texts, seed=0)))

    package.write(tmp_path / "package", project, settings(), [str(number) for number in range(4)])
    served = mlflow.pyfunc.load_model(str(tmp_path / "package"))
    images = served.predict(np.array(texts, dtype=object), params={"seed": 0})
    found = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in images]
    assert all(map(np.array_equal, drawn, found))
    with pytest.raises(Exception, match="labels must be texts, which this model takes, got 3"):
        served.predict(np.array([3], dtype=object))


def test_a_generator_of_classes_is_not_taken_over_for_texts(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(project, root)
    shutil.copytree(project / "models" / "generator", root / "ready")
    again = settings(**{"generator.from": "ready"})
    train_generator.run(again, Context(root, "g"))  # the same encoder
    write_text_index(root / "data" / "text", None, {}, {})
    with pytest.raises(BigrError, match=r"^generator.from is ready, which takes texts; set text.encoder to the one it"):
        train_generator.run(again, Context(root, "g"))
    shutil.rmtree(root / "models" / "text")
    encode_texts.run(settings(**{"text.vocabulary": 280}), Context(root, "h"))
    with pytest.raises(BigrError, match=r"^generator.from is ready, trained on texts of another encoder than that of"):
        train_generator.run(again, Context(root, "g"))


def test_a_killed_stage_goes_on_and_ends_with_the_same_files(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    shutil.copytree(project / "data", root / "data")
    shutil.rmtree(root / "data" / "text")
    made: list[str] = []
    allowed = 2

    def write(path: Path, *rest: Any) -> None:
        if len(made) == allowed:
            raise KeyboardInterrupt
        made.append(path.name)
        write_texts(path, *rest)

    write_texts = encode_texts.write_texts
    monkeypatch.setattr(encode_texts, "write_texts", write)
    with pytest.raises(KeyboardInterrupt):
        encode_texts.run(settings(), Context(root, "f"))
    assert not (root / "data" / "text").exists()
    first, made[:], allowed = list(made), [], 100
    encode_texts.run(settings(), Context(root, "f"))
    assert made and not set(made) & set(first)
    for path in (project / "data" / "text").iterdir():
        assert (root / "data" / "text" / path.name).read_bytes() == path.read_bytes()
    assert not (root / "checkpoints").exists()


@pytest.mark.slow
def test_two_processes_read_and_draw_what_one_does_and_train_on_their_halves(project: Path, tmp_path: Path) -> None:
    """Texts and samples to the byte. The weights of both processes are the same, and a killed training ends with them,
    bit for bit; they are not compared with those of one process."""
    for place in ("whole", "killed"):
        shutil.copytree(project / "data", tmp_path / place / "data")
        shutil.rmtree(tmp_path / place / "data" / "text")
        for name in ("tokenizer", "bigr"):
            shutil.copytree(project / "models" / name, tmp_path / place / "models" / name)
    run_two_processes(_TOGETHER, tmp_path)
    for path in (project / "data" / "text").iterdir():
        assert (tmp_path / "whole" / "data" / "text" / path.name).read_bytes() == path.read_bytes()
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    texts = Texts.open(project / "data" / "text", "train", 48)
    assert texts is not None and len(ranks[0]["images"]) == 5
    for step in range(5):
        images, read = (torch.cat([rank[name][step] for rank in ranks]) for name in ("images", "texts"))
        assert len(images) == 16 and torch.equal(read, texts.batch(images))
    assert all(torch.equal(*pair) for pair in zip(ranks[0]["weights"], ranks[1]["weights"], strict=True))
    whole, killed = ((tmp_path / place / "models" / "generator") for place in ("whole", "killed"))
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
    assert [rank["resumed"] for rank in ranks] == [1, 1]  # steps after the checkpoint of step 4
    draw_samples.run(settings(**TOGETHER), Context(tmp_path / "killed", "f"))
    with (
        np.load(tmp_path / "whole" / "outputs" / "samples.npz", allow_pickle=False) as two,
        np.load(tmp_path / "killed" / "outputs" / "samples.npz", allow_pickle=False) as one,
    ):
        names = ("arr_0", "arr_1", "texts", "train_images", "train_texts")
        assert set(names) == set(two.files) and all(np.array_equal(two[name], one[name]) for name in names)


TOGETHER = {
    **{"run.device": "cpu", "run.precision": "float32", "generator.text_dropout": 0.0, "samples.guidance_scale": 1.0},
    **{"samples.count": 7, "samples.train_captions": 4},
}
_TOGETHER = """
# One of two processes: reads the captions, trains the generator at once and with an interruption, and draws.
import pathlib, sys
import torch
from bigr.runtime.context import Context
from bigr.runtime.distributed import process_group, rank
from bigr.data.codes import CodesDataset
from bigr.stages import draw_samples, encode_texts, train_generator
from bigr.training.masked_batches import MaskedBatches
from bigr.training.optimiser import EMA
from tests.test_text_to_image import TOGETHER, settings

class Killed(Exception):
    pass

root, chosen, saw, seen = pathlib.Path(sys.argv[1]), settings(**TOGETHER), {"images": [], "texts": []}, {"steps": 0}
batch_of, codes_of, update = MaskedBatches.batch, CodesDataset.batch, EMA.update

def read(self, indices, *rest):
    seen["indices"] = indices
    return codes_of(self, indices, *rest)

def remember(self, step):
    batch = batch_of(self, step)
    if "last" not in seen:
        saw["images"].append(seen["indices"])
        saw["texts"].append(batch.labels)
    return batch

def watched(self, source):
    update(self, source)
    seen["steps"] += 1
    saw["weights"] = [tensor.clone() for tensor in self.module.state_dict().values()]
    if seen["steps"] == seen.get("last"):
        raise Killed

CodesDataset.batch, MaskedBatches.batch, EMA.update = read, remember, watched
with process_group(torch.device("cpu")):
    for place in ("whole", "killed"):
        encode_texts.run(chosen, Context(root / place, "f"))
    train_generator.run(chosen, Context(root / "whole", "f"))
    seen.update(steps=0, last=5)
    try:
        train_generator.run(chosen, Context(root / "killed", "f"))
        raise AssertionError("not killed")
    except Killed:
        pass
    seen.update(steps=0, last=None)
    train_generator.run(chosen, Context(root / "killed", "f"))
    saw["resumed"] = seen["steps"]
    draw_samples.run(chosen, Context(root / "whole", "f"))
    torch.save(saw, root / f"rank{rank()}.pt")
"""


def test_images_without_captions_are_one_line(project: Path, tmp_path: Path) -> None:
    index = config.read(project / "data" / "shards" / "index.json")
    del index["splits"]["val"]["captions"]
    (tmp_path / "data" / "shards").mkdir(parents=True)
    write_json(tmp_path / "data" / "shards" / "index.json", index)
    with pytest.raises(BigrError, match=r"^text.encoder is learned, but the val images in data/shards have no "):
        encode_texts.run(settings(), Context(tmp_path, "f"))
    assert not (tmp_path / "models").exists()


def test_without_an_encoder_the_stage_writes_only_that(project: Path, tmp_path: Path) -> None:
    encode_texts.run(settings(**{"text.encoder": "none"}), Context(tmp_path, "f"))
    assert [path.name for path in (tmp_path / "data" / "text").iterdir()] == ["index.json"]
    with pytest.raises(BigrError, match=r"has no encoder of texts \(none\); run the stage text"):
        load_encoder(tmp_path / "models" / "text", torch.device("cpu"))


def test_images_of_which_some_have_no_caption_are_counted_in_a_warning(
    project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(project / "data", tmp_path / "data")
    index = config.read(tmp_path / "data" / "shards" / "index.json")
    assert (index["splits"]["train"]["captions"], index["splits"]["val"]["captions"]) == (48, 16)
    index["splits"]["train"]["captions"] = 47
    write_json(tmp_path / "data" / "shards" / "index.json", index)
    encode_texts.run(settings(), Context(tmp_path, "f"))
    assert [line for line in caplog.messages if "no caption" in line] == [
        "text: 1 of 48 train images have no caption: no text"
    ]


def test_a_table_of_captions_with_a_line_too_few_is_named_in_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_captioned(tmp_path / "captioned", size=16, images=12)
    lines = [f"{number}.png,a caption" for number in range(11)]
    for path in (tmp_path / "captioned").glob("*.txt"):
        path.unlink()
    (tmp_path / "captioned" / "captions.csv").write_text("\n".join(["file_name,text", *lines]))
    pack_shards.run(settings(**{"shards.source": "captioned"}), Context(tmp_path, "f"))
    index = ShardIndex.load(tmp_path / "data" / "shards")
    assert index.images("train") + index.images("val") == 11
    assert [line for line in caplog.messages if "left out" in line] == [
        f"{tmp_path / 'captioned' / 'captions.csv'}: 1 images that it does not name are left out"
    ]


def forget_the_encoder(model: Path) -> None:
    """Take the encoder's hash out of a model's folder, as in one that does not name it."""
    values = config.read(model / "config.json")
    del values["text"]
    write_json(model / "config.json", values)


def test_an_encoder_whose_texts_do_not_fit_the_model_is_one_line(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(project, root)
    shutil.copytree(project / "models" / "generator", root / "ready")
    encode_texts.run(settings(**{"text.tokens": 12}), Context(root, "g"))
    for folder in (root / "models" / "bigr", root / "ready"):
        forget_the_encoder(folder)
    with pytest.raises(
        BigrError, match=r"bigr takes texts of 10 tokens of \d+ byte pairs, .*text gives 12 .*`dvc repro`"
    ):
        bigr.load(root, device="cpu")
    with pytest.raises(
        BigrError, match=r"^generator.from is ready, for texts of 10 tokens of .*; data/text has 12 tok"
    ):
        train_generator.run(settings(**{"generator.from": "ready"}), Context(root, "g"))


def test_the_check_takes_a_generator_of_texts_where_the_settings_do(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "models" / "generator", tmp_path / "ready")
    check_models(tmp_path, settings(**{"generator.from": "ready"}), ("generator",), 4)
    with pytest.raises(BigrError, match=r"^generator.from is ready, which takes texts; set text.encoder to the one it"):
        check_models(tmp_path, settings(**{"generator.from": "ready", "text.encoder": "none"}), ("generator",), 4)


def test_metrics_of_texts_are_measured_where_the_settings_say_so() -> None:
    def reason(name: str, **changes: object) -> str:
        gate = [{"name": name, "tolerance": 0.1, "relative": False, "limit": None}]
        try:
            check_promotion(settings(**{"promotion.metrics": gate, **changes}), None)
        except BigrError as error:
            return str(error)
        return ""

    for name in ("retrieval.top1", "retrieval.train_top1", "attributes.all", "attributes.held_out_all"):
        assert reason(name) == ""
        assert "text.encoder is none" in reason(name, **{"text.encoder": "none"})
    assert "evaluation.clip is empty" in reason("retrieval.clip_score")
    assert reason("retrieval.clip_score", **{"evaluation.clip": "clip"}) == ""
    assert "samples.train_captions is 0" in reason("retrieval.train_top1", **{"samples.train_captions": 0})
    assert "not the embedded scenes" in reason("attributes.all", **{"dataset.name": "emoji"})
    assert "texts take the classes' place" in reason("zero_shot.edit_label_agreement")
    assert "samples.prompts names texts" in reason("samples.label_agreement", **{"samples.prompts": "prompts.txt"})


def test_another_encoder_than_the_models_is_refused(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "project")
    encode_texts.run(settings(**{"text.tokens": 12}), Context(tmp_path / "project", "g"))
    with pytest.raises(BigrError, match=r"was trained on texts of another encoder than .*; run `dvc repro`"):
        bigr.load(tmp_path / "project", device="cpu")
