"""The stage `samples`: what it writes, and what a sample depends on."""

import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from bigr.data.drawn_images import DrawnImages, divided
from bigr.interop.folders import load_model
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.runtime.context import Context
from bigr.runtime.errors import BigrError
from bigr.runtime.files import Blocks, write_npz
from bigr.runtime.seeds import derive_seed
from bigr.sampling import decode
from bigr.sampling.decode import decoded
from bigr.sampling.unmask import Sampling, sample_codes
from bigr.stages import draw_samples
from tests.test_training import run_processes
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
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_write_the_file_of_one_also_after_a_kill(project, tmp_path, processes):
    for name in ("one", "several"):
        shutil.copytree(project / "models", tmp_path / name / "models")
    sampled(tmp_path / "one", **TOGETHER)
    root = tmp_path / "several"
    statuses = run_processes(_TOGETHER.replace("LEAST", "3"), root, processes)
    assert statuses[-1] == 9 and not (root / "outputs").exists()
    there = DrawnImages(root / "checkpoints" / "samples", TOGETHER["samples__count"])
    kept = {path.name: path.stat().st_mtime_ns for path in there.folder.glob("0*.safetensors")}
    left = sum(map(len, there.missing()))
    assert kept and 0 < left < there.count

    drawn = run_processes(_TOGETHER.replace("LEAST", "0"), root, 6 // processes)  # of another number of processes
    assert drawn == [0] * (6 // processes)
    counts = [int(path.read_text()) for path in root.glob("drawn-*")]
    assert sum(counts) == left and max(counts) - min(counts) <= 1
    one, several = (folder / "outputs" / "samples.npz" for folder in (tmp_path / "one", root))
    assert one.read_bytes() == several.read_bytes()
    assert not (root / "checkpoints").exists()


TOGETHER = {"run__device": "cpu", "samples__count": 23, "samples__batch_size": 3}
_TOGETHER = """
import os, pathlib, sys
import torch
from bigr.data.drawn_images import DrawnImages
from bigr.runtime.context import Context
from bigr.runtime.distributed import process_group, rank, world
from bigr.stages import draw_samples as samples
from tests.test_samples import TOGETHER, chosen

root, write, drawn = pathlib.Path(sys.argv[1]), DrawnImages.write, []


def watched(self, numbers, images):
    write(self, numbers, images)
    drawn.extend(numbers)
    if LEAST and rank() == world() - 1 and len(drawn) >= LEAST:
        os._exit(9)


DrawnImages.write = watched
with process_group(torch.device("cpu")):
    try:
        samples.run(chosen(**TOGETHER), Context(root, "the same"))
    except Exception:
        os._exit(1)
    (root / f"drawn-{rank()}").write_text(str(len(drawn)))
"""


def test_images_of_parts_made_under_another_fingerprint_are_drawn_again(tmp_path, project, monkeypatch):
    shutil.copytree(project / "models", tmp_path / "models")
    write, drawn = DrawnImages.write, []

    def killed(self, numbers, images):
        if drawn:
            raise KeyboardInterrupt
        drawn.extend(numbers)
        write(self, numbers, images)

    monkeypatch.setattr(DrawnImages, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        draw_samples.run(chosen(), Context(tmp_path, "before"))
    monkeypatch.setattr(DrawnImages, "write", lambda *args: drawn.extend(args[1]) or write(*args))
    draw_samples.run(chosen(), Context(tmp_path, "after"))
    assert len(drawn) == 8 + COUNT


def test_a_file_of_samples_is_put_together_in_a_fraction_of_its_size(tmp_path):
    count, side = 2_000, 64
    there = DrawnImages(tmp_path, count)
    for numbers in divided([range(count)], 0, 1, 100):
        rows = np.arange(numbers.start, numbers.stop, dtype=np.int64)
        there.write(numbers, torch.from_numpy(rows % 251).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, side, side, 3))
    tracemalloc.start()
    images = Blocks((count, side, side, 3), np.dtype(np.uint8), there.blocks(range(count)))
    write_npz(tmp_path / "samples.npz", arr_0=images, arr_1=np.arange(count))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = count * side * side * 3
    assert peak < whole / 5
    with np.load(tmp_path / "samples.npz") as file:
        assert np.array_equal(file["arr_0"][:, 0, 0, 0], np.arange(count) % 251)
        np.savez(tmp_path / "numpy.npz", arr_0=file["arr_0"], arr_1=file["arr_1"])
    assert (tmp_path / "numpy.npz").read_bytes() == (tmp_path / "samples.npz").read_bytes()


def test_shares_are_equal_and_cover_what_is_missing():
    missing = [range(2, 5), range(9, 30), range(31, 32)]
    for of in (1, 2, 4, 7, 40):
        shares = [list(divided(missing, share, of, 4)) for share in range(of)]
        numbers = [number for share in shares for part in share for number in part]
        assert numbers == [number for one in missing for number in one]
        sizes = [sum(map(len, share)) for share in shares]
        assert max(sizes) - min(sizes) <= 1 and all(0 < len(part) <= 4 for share in shares for part in share)


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
