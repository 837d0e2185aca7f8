"""The stage `samples`: what it writes, and what a sample depends on."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from bigr.interop.folders import load_model
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.runtime.context import Context
from bigr.runtime.errors import BigrError
from bigr.runtime.seeds import derive_seed
from bigr.sampling import decode
from bigr.sampling.decode import decoded
from bigr.sampling.unmask import Sampling, sample_codes
from bigr.stages import draw_samples
from tests.test_training import run_two_processes
from tests.worlds import settings, write_models

COUNT, CLASSES, SIDE = 20, 3, 8


def chosen(**changes):
    """Settings under which each choice that the sampler can make shows in its samples."""
    own = {"count": COUNT, "batch_size": 8, "iterations": 4, "diffusion_steps": 4, "guidance_scale": 2.0}
    return settings(**{f"samples__{name}": value for name, value in own.items()} | changes)


def sampled(root, **changes):
    """Run the stage; its images and its labels."""
    draw_samples.run(chosen(**changes), Context(root))
    with np.load(root / "outputs" / "samples.npz") as file:
        assert file.files == ["arr_0", "arr_1"]
        return file["arr_0"], file["arr_1"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("samples")
    write_models(root)
    return root


@pytest.fixture
def conditions(monkeypatch):
    """The labels that the sampler is given, in the order of the samples."""
    seen = []
    monkeypatch.setattr(
        draw_samples,
        "sample_codes",
        lambda model, labels, *rest: seen.extend(labels.tolist()) or sample_codes(model, labels, *rest),
    )
    return seen


def test_samples_have_the_layout_of_adms_evaluator_and_balanced_classes(project, conditions):
    images, labels = sampled(project)
    assert (images.dtype, images.shape) == (np.uint8, (COUNT, SIDE, SIDE, 3))
    assert (labels.dtype, labels.shape) == (np.int64, (COUNT,))
    assert sorted(np.bincount(labels, minlength=CLASSES)) == [6, 7, 7]
    assert conditions == labels.tolist()
    assert len(np.unique(images, axis=0)) == COUNT


def test_samples_are_the_same_in_batches_of_any_size(project):
    first, *others = (sampled(project, samples__batch_size=size)[0] for size in (1, 7, 100))
    for other in others:
        assert first.tobytes() == other.tobytes()


def test_images_are_decoded_in_float32_also_under_autocast(project):
    tokenizer = load_model(project / "models" / "tokenizer", Tokenizer)
    codes = torch.rand(4, 16, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = decoded(tokenizer, codes)
    assert under.equal(decoded(tokenizer, codes))


@pytest.mark.parametrize(("large", "size"), [(16, 1), (17, decode.DECODED_TOGETHER)])
def test_a_large_image_is_decoded_alone_on_a_cpu_and_every_pass_has_one_size(project, monkeypatch, large, size):
    tokenizer, own = load_model(project / "models" / "tokenizer", Tokenizer), Tokenizer.decode
    codes = torch.rand(18, 16, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    sizes = []
    monkeypatch.setattr(decode, "LARGE", large)
    monkeypatch.setattr(Tokenizer, "decode", lambda self, codes: sizes.append(len(codes)) or own(self, codes))
    together = decoded(tokenizer, codes)
    assert together[17:].equal(decoded(tokenizer, codes[17:]))
    assert set(sizes) == {size}


def test_decoding_in_bfloat16_moves_values_a_little_and_only_where_it_is_set(project):
    exact, narrow, again = (
        sampled(project, run__decode_precision=kind)[0].astype(int) for kind in ("float32", "bfloat16", "float32")
    )
    assert 0 < abs(narrow - exact).max() <= 8
    assert (again == exact).all()


@pytest.mark.slow
def test_two_processes_draw_the_samples_of_one_and_hand_over_a_few_at_a_time(project, tmp_path):
    shutil.copytree(project / "models", tmp_path / "models")
    images, labels = sampled(project, run__device="cpu", samples__count=11)
    run_two_processes(_TOGETHER, tmp_path)
    with np.load(tmp_path / "outputs" / "samples.npz") as file:
        assert np.array_equal(file["arr_1"], labels)
        assert np.array_equal(file["arr_0"], images)


_TOGETHER = """
import pathlib, sys
import torch
from bigr.runtime.context import Context
from bigr.stages import draw_samples as samples
from bigr.runtime.distributed import process_group
from tests.test_samples import chosen

samples.GATHERED_TOGETHER = 2
with process_group(torch.device("cpu")):
    samples.run(chosen(run__device="cpu", samples__count=11), Context(pathlib.Path(sys.argv[1])))
"""


def test_another_seed_gives_other_samples_of_the_same_classes(project):
    (images, labels), (others, same) = sampled(project), sampled(project, seed=1)
    assert (images != others).any(axis=(1, 2, 3)).all()
    assert np.array_equal(labels, same)


def test_the_picture_has_one_column_a_class(project):
    images, labels = sampled(project, samples__grid_rows=2)
    picture = np.asarray(Image.open(project / "outputs" / "samples.png"))
    enlarged, cell = 6, SIDE + 1
    assert picture.shape == ((2 * cell + 1) * enlarged, (CLASSES * cell + 1) * enlarged, 3)
    pixels = picture[::enlarged, ::enlarged]
    for label in range(CLASSES):
        for row, image in enumerate(images[labels == label][:2]):
            top, left = 1 + row * cell, 1 + label * cell
            assert np.array_equal(pixels[top : top + SIDE, left : left + SIDE], image)


@pytest.mark.parametrize("target", ["flip", "x0", "direct", "mask"])
@pytest.mark.parametrize("quantizer", ["bernoulli", "lfq"])
def test_samples_are_the_decoded_codes_of_each_kind_of_model(tmp_path, target, quantizer):
    write_models(tmp_path, target=target, quantizer=quantizer)
    images, labels = sampled(tmp_path, samples__count=4)
    assert len(np.unique(images, axis=0)) == 4
    tokenizer = load_model(tmp_path / "models" / "tokenizer", Tokenizer)
    model = load_model(tmp_path / "models" / "bigr", BiGR)
    assert (model.config.target, tokenizer.config.quantizer) == (target, quantizer)
    values = chosen()
    seeds = [derive_seed(values.seed, "samples", i) for i in range(4)]
    codes = sample_codes(model, torch.from_numpy(labels), Sampling.of(values.samples), seeds)
    expected = tokenizer.decode(codes).detach().clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(images - expected).max() < 0.51


def test_a_model_trained_without_labels_samples_the_unconditional_one(project, conditions):
    images, labels = sampled(project, generator__use_labels=False, samples__guidance_scale=1.0)
    assert conditions == [CLASSES] * COUNT
    assert sorted(np.bincount(labels, minlength=CLASSES)) == [6, 7, 7]
    assert (images != sampled(project, samples__guidance_scale=1.0)[0]).any()


def test_a_model_of_another_tokenizers_codes_is_refused(tmp_path):
    write_models(tmp_path, tokenizer="another")
    with pytest.raises(BigrError, match="models/bigr was trained on codes of another tokenizer"):
        sampled(tmp_path)
    assert not (tmp_path / "outputs").exists()


def test_a_model_of_another_number_of_bits_is_refused(tmp_path):
    write_models(tmp_path, bits=6, model_bits=5)
    with pytest.raises(BigrError, match=r"models/bigr has \(bits, grid\) = \(5, 4\), models/tokenizer \(6, 4\)"):
        sampled(tmp_path)
