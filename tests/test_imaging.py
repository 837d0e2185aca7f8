"""bigr.load and its object: pictures of any size and form in, pictures out; and the masks, windows, seams behind it."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import bigr
from bigr.data.images import to_tensor
from bigr.data.shards import load_split
from bigr.evaluation import zero_shot
from bigr.imaging.assembly import PAPER, PAPER_EDITING
from bigr.imaging.blend import blended
from bigr.imaging.frames import Frame
from bigr.imaging.model import ImageModel
from bigr.imaging.painting import parts_of
from bigr.imaging.pictures import read_mask, read_picture
from bigr.imaging.windows import Window, scaled_mask, windows
from bigr.interop.standardisation import FeatureStatistics, save_statistics
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.runtime.errors import BigrError
from bigr.runtime.seeds import derive_seed
from bigr.sampling.decode import decoded as decoded_images
from bigr.sampling.resolution import consistent_with
from bigr.sampling.unmask import sample_codes
from bigr.stages import draw_samples
from tests import tiny
from tests.scratch import ROOT
from tests.worlds import write_models, write_shards

SIZE, CLASSES = 8, 3


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with untrained models of 8×8 pixels, three classes with names, and its params.yaml."""
    root = tmp_path_factory.mktemp("project")
    write_shards(root, size=SIZE, classes=CLASSES, prefix="class_")
    write_models(root)
    return root


@pytest.fixture(scope="module")
def model(project: Path) -> ImageModel:
    return bigr.load(project)


def picture(width: int = SIZE, height: int = SIZE, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def lower_half(width: int = SIZE, height: int = SIZE) -> np.ndarray:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[height // 2 :] = 255
    return mask


def same(a: list[Image.Image], b: list[Image.Image]) -> bool:
    return [one.tobytes() for one in a] == [one.tobytes() for one in b]


def test_generated_pictures_are_those_of_the_sampler_for_the_same_seed(model: ImageModel) -> None:
    pictures = model.generate([1, 0], seed=3)
    seeds = [derive_seed(3, "samples", index) for index in range(2)]
    codes = sample_codes(model.sampler.network, torch.tensor([1, 0]), model.sampling, seeds)
    expected = draw_samples.decoded(model.sampler.tokenizer, codes).numpy()
    assert np.array_equal(np.stack([np.asarray(one) for one in pictures]), expected)


def test_a_seed_gives_the_same_pictures_and_variants_differ(model: ImageModel) -> None:
    first = model.inpaint(picture(), lower_half(), variants=3, seed=5)
    assert same(first, model.inpaint(picture(), lower_half(), variants=3, seed=5))
    assert len({one.tobytes() for one in first}) == 3
    assert not same(first, model.inpaint(picture(), lower_half(), variants=3, seed=6))


@pytest.mark.parametrize("blend", ["feather", "poisson", "none"])
@pytest.mark.parametrize("size", [(SIZE, SIZE), (50, 37), (20, 90), (7, 7)])
def test_known_pixels_come_back_unchanged_outside_the_seam(
    model: ImageModel, size: tuple[int, int], blend: str
) -> None:
    original = picture(*size)
    (painted,) = model.inpaint(original, lower_half(*size), blend=blend)
    assert painted.size == size
    grid = model.sampler.network.config.grid
    seam = int(np.ceil(model.editing.feather * min(size) / grid)) if blend == "feather" else 0
    before, after = np.asarray(original), np.asarray(painted)
    known = size[1] // 2 - seam - 1 if seam else size[1] // 2
    assert np.array_equal(before[:known], after[:known])
    assert (before[size[1] // 2 :] != after[size[1] // 2 :]).any()


def test_known_tokens_keep_their_bits(model: ImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    decode = model.sampler.decode
    monkeypatch.setattr(model.sampler, "decode", lambda codes: drawn.append(codes) or decode(codes))
    model.inpaint(picture(), lower_half())
    given = model.sampler.encode([picture()])
    half = given.shape[1] // 2
    assert torch.equal(drawn[0][:, :half], given[:, :half])
    assert not torch.equal(drawn[0][:, half:], given[:, half:])


def test_a_mask_longer_than_a_window_is_painted_everywhere(model: ImageModel) -> None:
    original = picture(150, 30)
    (painted,) = model.inpaint(original, np.full((30, 150), 255, np.uint8), blend="none")
    changed = (np.asarray(original) != np.asarray(painted)).any(-1)
    assert changed.mean(axis=0).min() > 0.5


def test_every_marked_pixel_is_in_a_window_and_windows_start_where_most_is_known() -> None:
    mask = np.zeros((20, 100), dtype=bool)
    mask[:, 25:] = True
    found = windows(mask)
    covered = np.zeros_like(mask)
    for window in found:
        assert 0 <= window.left <= 100 - 20 and window.side == 20
        covered[window.slices] = True
    assert covered[mask].all()
    assert found[0].left == min(window.left for window in found)
    mask = np.zeros((100, 20), dtype=bool)
    mask[70:75] = True
    assert windows(mask) == [Window(0, 62, 20)]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("begin", "end"), [(16, 32), (16, 28), (0, 16), (20, 60), (16, 90), (30, 46)])
def test_what_is_painted_first_sees_what_is_beside_the_mask(begin: int, end: int, turned: bool) -> None:
    mask = np.zeros((16, 90), dtype=bool)
    mask[:, begin:end] = True
    mask = mask.T if turned else mask
    found = windows(mask)
    assert (~mask[found[0].slices]).mean() >= 0.125
    left = mask.copy()
    for window in found:
        assert (~left[window.slices]).mean() >= 0.125
        left[window.slices] = False
    assert not left.any()


def test_a_grown_picture_depends_on_the_picture_it_grew_from(model: ImageModel) -> None:
    black, white = (Image.new("RGB", (SIZE, SIZE), colour) for colour in ("black", "white"))
    grown = [np.asarray(model.outpaint(one, margins=(0, 0, SIZE, 0), blend="none")[0]) for one in (black, white)]
    assert not np.array_equal(grown[0][:, SIZE:], grown[1][:, SIZE:])


def test_windows_keep_no_mask_of_the_whole_picture_and_are_bounded(model: ImageModel) -> None:
    parts = parts_of(np.ones((8, 400), dtype=bool), SIZE, grid=4)
    assert {part.mask.shape for part in parts} == {(8, 8)}
    with pytest.raises(BigrError, match=r"^mask: painting it takes 6,667 squares"):
        model.inpaint(picture(5000, 1), np.ones((1, 5000), dtype=bool))
    assert model.inpaint(picture(5000, 1), np.eye(1, 5000, 7, dtype=np.uint8) * 255)[0].size == (5000, 1)


@pytest.mark.parametrize("form", ["box", "disc", "pixel", "edge", "corner"])
def test_poisson_blending_sees_nothing_of_what_is_removed(form: str) -> None:
    y, x = np.mgrid[:40, :40]
    mask = {
        "box": (abs(y - 20) < 10) & (abs(x - 20) < 8),
        "disc": (y - 20) ** 2 + (x - 20) ** 2 < 100,
        "pixel": (y == 5) & (x == 5),
        "edge": y >= 30,
        "corner": (y < 7) & (x < 5),
    }[form]
    scene = np.repeat((3 * y + x)[..., None], 3, axis=2).astype(np.uint8)
    removed = np.where(mask[..., None], np.uint8(0), scene)
    found = blended(removed, scene + np.uint8(60), mask, "poisson", 0)  # the same, but for its brightness
    assert np.abs(found.astype(int) - scene).max() <= 1


def test_a_single_marked_pixel_of_a_large_picture_survives_scaling() -> None:
    mask = np.zeros((3000, 3000), dtype=bool)
    mask[2999, 1234] = True
    assert np.argwhere(scaled_mask(mask, 16)).tolist() == [[15, 6]]
    assert scaled_mask(np.eye(2, dtype=bool), 4).tolist() == np.kron(np.eye(2), np.ones((2, 2))).astype(bool).tolist()


def test_outpainting_keeps_the_box_or_adds_margins(model: ImageModel) -> None:
    original = picture()
    (kept,) = model.outpaint(original, box=(2, 0, 8, 8), blend="none")
    assert np.array_equal(np.asarray(kept)[:, 2:], np.asarray(original)[:, 2:])
    (grown,) = model.outpaint(original, margins=(10, 0, 6, 0), blend="none")
    assert grown.size == (SIZE + 16, SIZE)
    assert np.array_equal(np.asarray(grown)[:, 10 : 10 + SIZE], np.asarray(original))


def test_interpolation_begins_and_ends_at_the_classes(model: ImageModel) -> None:
    pictures = model.interpolate("class_0", "class_1", 3, variants=2)
    assert len(pictures) == 6
    ends = [model.interpolate(a, a, 2)[0].tobytes() for a in (0, 1)]
    assert [pictures[0].tobytes(), pictures[2].tobytes()] == ends


def test_many_images_in_batches_are_those_of_a_call_for_each(model: ImageModel) -> None:
    """So that the evaluation, which draws many, measures what users call."""
    images, masks = [picture(seed=seed) for seed in range(3)], [lower_half(), lower_half().T, lower_half()]
    small = [picture(SIZE // 2, SIZE // 2, seed) for seed in range(3)]
    pixels, marked = torch.stack([to_tensor(image) for image in images]), torch.from_numpy(np.stack(masks)) > 0
    seeds = {place: [derive_seed(seed, *place, 0) for seed in range(3)] for place in (("inpaint", 0), ("enrich",))}
    for labels in (None, [2, 0, 1]):
        asked = None if labels is None else torch.tensor(labels)
        drawn = zero_shot.painted(model, pixels, marked, asked, seeds["inpaint", 0])
        each = zip(images, masks, labels or [None] * 3, strict=True)
        alone = [
            model.inpaint(image, mask, label=c, seed=n, blend="none")[0] for n, (image, mask, c) in enumerate(each)
        ]
        assert torch.equal(drawn, torch.stack([to_tensor(one) for one in alone]))
    drawn = zero_shot.enriched(model, small, seeds["enrich",])
    alone = [model.enrich(image, seed=seed, consistent=False)[0] for seed, image in enumerate(small)]
    assert torch.equal(drawn, torch.stack([to_tensor(one) for one in alone]))
    first = torch.arange(3)
    drawn = zero_shot.interpolated(model, first, (first + 1) % 3, 0.5, [derive_seed(7, "samples", 0)] * 3)
    alone = [model.interpolate(c, (c + 1) % 3, 3, seed=7)[1] for c in range(3)]
    assert torch.equal(drawn, torch.stack([to_tensor(one) for one in alone]))


def test_enrichment_agrees_with_the_small_picture(model: ImageModel) -> None:
    x, y = np.meshgrid(np.linspace(60, 200, SIZE // 2), np.linspace(60, 200, SIZE // 2))
    small = Image.fromarray(np.stack([x, y, (x + y) / 2], -1).astype(np.uint8))
    (large,) = model.enrich(small)
    assert large.size == (SIZE, SIZE)
    again = np.asarray(large.resize(small.size, Image.Resampling.BICUBIC), dtype=float)
    assert np.abs(again - np.asarray(small)).mean() < 2
    (free,) = model.enrich(small, consistent=False)
    assert np.abs(np.asarray(free.resize(small.size), dtype=float) - np.asarray(small)).mean() > 2
    assert model.enrich(small, rounds=2)[0].tobytes() != large.tobytes()


@pytest.mark.parametrize(("grid", "multipliers"), [(7, (1, 1, 1)), (3, (1, 1)), (1, (1, 2)), (1, (1,)), (5, (1,))])
def test_enrichment_works_on_any_grid_and_counts_its_iterations(tmp_path: Path, grid: int, multipliers) -> None:
    write_models(tmp_path, grid=grid, multipliers=multipliers, channels=64 if grid == 1 else 32)
    model = bigr.load(tmp_path)
    for given in (picture(1, 1), picture(3 * model.size, 3 * model.size)):  # the second is first made half the size
        frames: list[Frame] = []
        options = {"variants": 3, "iterations": grid**2, "diffusion_steps": 2}
        drawn = model.enrich(given, on_step=frames.append, **options)
        assert [one.size for one in drawn] == [(model.size, model.size)] * 3
        assert [frame.number for frame in frames] == list(range(1, frames[-1].of + 1))
        assert all(len(frame.pictures) == 3 for frame in frames)  # none ahead of the others


def test_what_is_consistent_already_stays() -> None:
    flat = Image.new("RGB", (8, 8), (10, 20, 30))
    assert np.array_equal(np.asarray(consistent_with(flat, flat.resize((16, 16)))), np.asarray(flat.resize((16, 16))))


def test_features_are_token_averages_of_a_layer(model: ImageModel) -> None:
    pictures = [picture(seed=seed) for seed in range(3)]
    found = model.features(pictures, 2)
    codes = model.sampler.encode(pictures)
    assert torch.allclose(found, model.sampler.network.features(codes)[1].mean(1), atol=1e-5)
    assert model.features(pictures[0]).shape == (1, found.shape[1])


def test_pictures_beside_it_move_a_pictures_features_by_rounding_alone(model: ImageModel) -> None:
    pictures = [picture(seed=seed) for seed in range(37)]  # two batches, and a part of one
    together = model.layer_features(pictures)
    assert together.shape == (37, model.num_layers, together.shape[2])
    alone = torch.cat([model.layer_features(one) for one in pictures])
    assert (together - alone).abs().max() < 1e-5 * alone.std()
    for layer in (1, 2):
        assert torch.equal(model.features(pictures, layer), together[:, layer - 1])


def test_pictures_are_alike_by_what_tells_them_apart() -> None:
    """Two kinds of features around a mean that is far larger; one number varies a hundred times more than they do."""
    draws = torch.Generator().manual_seed(0)
    kinds = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]]).repeat(10, 1)
    features = 900 + kinds + 0.1 * torch.randn(20, 3, generator=draws)
    features[:, 2] += 100 * torch.randn(20, generator=draws)
    assert F.cosine_similarity(features[:1], features).min() > 0.97  # as they come, all are alike
    for model in (of_features(None), of_features(replace(FeatureStatistics.of(features.unsqueeze(1)), best_layer=1))):
        similarity, place = model.nearest(features[:4], features, 5)
        assert similarity[:, 0].tolist() == pytest.approx([1] * 4) and place[:, 0].tolist() == [0, 1, 2, 3]
        assert (similarity.diff(dim=1) <= 0).all()
        everyone, order = model.nearest(features[:1], features, 99)
        assert everyone.shape == (1, 20) and everyone.min() < -0.5
        assert (order[0, :10] % 2 == 0).double().mean() > 0.75
    with pytest.raises(BigrError, match=r"features must be two tensors \[n, D\], .* got \[4, 2\] and \[20, 3\]"):
        of_features(None).nearest(features[:4, :2], features, 5)


def of_features(statistics: FeatureStatistics | None) -> ImageModel:
    """A model of one layer, of which nothing but `nearest` is asked."""
    network = SimpleNamespace(config=SimpleNamespace(layers=1))
    sampler: Any = SimpleNamespace(network=network)
    return ImageModel(sampler, PAPER, PAPER_EDITING, ["a"], statistics=statistics)


def test_the_layer_and_the_statistics_come_with_the_model_and_are_no_other_models(tmp_path: Path, caplog) -> None:
    write_models(tmp_path)
    alone = bigr.load(tmp_path)
    assert (alone.statistics, alone.feature_layer) == (None, 1)
    rows = alone.layer_features([picture(seed=seed) for seed in range(9)])
    save_statistics(
        tmp_path / "models/features", replace(FeatureStatistics.of(rows), best_layer=2), tmp_path / "models/bigr"
    )
    model = bigr.load(tmp_path)
    assert model.feature_layer == 2
    assert torch.equal(model.features(picture()), model.features(picture(), 2))
    unit = model.statistics.standardised(rows)
    similarity, place = model.nearest(rows[:1, 1], rows[:, 1], 9)
    assert torch.allclose(similarity[0], F.cosine_similarity(unit[:1, 1], unit[:, 1])[place[0]], atol=1e-6)
    write_models(tmp_path, bits=8)
    assert bigr.load(tmp_path).statistics is None
    assert "models/features is of another model" in caplog.text


def test_an_onlooker_sees_every_iteration_and_can_end_the_call(model: ImageModel) -> None:
    frames: list[Frame] = []
    model.generate([0, 1], iterations=4, on_step=frames.append)
    assert [frame.number for frame in frames] == list(range(1, frames[-1].of + 1))
    assert all(len(frame.pictures) == len(frame.entropies) == 2 for frame in frames)
    known = [np.isnan(frame.entropies[0]).sum() for frame in frames]
    assert known[0] == 0 and known == sorted(known) and known[-1] > 0
    assert np.nanmax(frames[0].entropies[0]) <= 1 and np.nanmin(frames[0].entropies[0]) >= 0

    def stop(frame: Frame) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(0, on_step=stop)


def test_an_onlooker_that_reads_one_picture_has_one_decoded(model: ImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []

    def decode(tokenizer: Tokenizer, codes: torch.Tensor) -> torch.Tensor:
        decoded.append(len(codes))
        return decoded_images(tokenizer, codes)

    monkeypatch.setattr("bigr.imaging.frames.decoded", decode)
    frames: list[Frame] = []
    model.generate([0, 1, 0], iterations=1, on_step=frames.append)
    assert decoded == [] and len(frames[0].pictures) == 3
    alone = frames[0].pictures[-1]
    assert decoded == [1] and frames[0].pictures[2] is alone
    assert np.array_equal(list(frames[0].pictures)[2], alone) and decoded == [1, 3]


def test_an_edit_takes_iterations_in_proportion_to_what_is_unknown(model: ImageModel) -> None:
    def iterations(rows: int) -> int:
        frames: list[Frame] = []
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[:rows] = 255
        model.inpaint(picture(), mask, iterations=16, on_step=frames.append)
        return frames[-1].of

    quarter, whole = iterations(SIZE // 4), iterations(SIZE)
    assert quarter <= whole / 3


FORMS = {
    "palette": lambda image: image.convert("P"),
    "grey": lambda image: image.convert("L"),
    "one bit": lambda image: image.convert("1"),
    "cmyk": lambda image: image.convert("CMYK"),
    "transparent": lambda image: image.convert("RGBA"),
    "16 bit": lambda image: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257),
    "float": lambda image: image.convert("F"),
    "lab": lambda image: image.convert("HSV"),
}


@pytest.mark.parametrize("form", FORMS)
def test_pictures_of_any_mode_are_taken(model: ImageModel, form: str) -> None:
    (painted,) = model.inpaint(FORMS[form](picture(40, 20)), lower_half())
    assert (painted.size, painted.mode) == ((40, 20), "RGB")


def test_tensors_arrays_and_files_are_the_same_picture(tmp_path: Path) -> None:
    original = picture(6, 4)
    array = np.array(original)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    original.save(tmp_path / "a.png")
    for source in (original, array, tensor, tensor.float() / 255, tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(np.asarray(read_picture(source)), array)


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(20, 10).save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").size == (10, 20)
    assert read_picture(Image.open(tmp_path / "turned.jpg")).size == (10, 20)


def test_a_mask_is_scaled_and_may_be_transparent() -> None:
    small = np.array([[0, 255]], dtype=np.uint8)
    found = read_mask(small, (8, 4))
    assert found[:, 5:].all() and not found[:, :3].any()
    painted = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    painted.paste((0, 0, 0, 255), (2, 1, 4, 3))
    assert np.argwhere(read_mask(painted, (8, 4))).tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]


def test_a_transparent_mask_is_turned_upright_as_pictures_are(tmp_path: Path) -> None:
    painted = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    painted.putpixel((0, 0), (0, 0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    painted.save(tmp_path / "mask.png", exif=exif)
    for source in (tmp_path / "mask.png", Image.open(tmp_path / "mask.png")):
        assert np.argwhere(read_mask(source, (2, 4))).tolist() == [[0, 1]]


def test_feathering_fades_and_ends() -> None:
    original, painted = np.zeros((1, 9, 3), np.uint8), np.full((1, 9, 3), 200, np.uint8)
    mask = np.zeros((1, 9), dtype=bool)
    mask[0, 0] = True
    found = blended(original, painted, mask, "feather", 3)[0, :, 0].tolist()
    assert found == [200, 150, 100, 50, 0, 0, 0, 0, 0]


FOUR = "must be four whole numbers of pixels (left, top, right, bottom), got"
LARGE = "margins must give an image of at most 30,000 pixels along a side and 500,000,000 in all, got"
WRONG = {
    "label must be a class of the model, got 'clas_0'; did you mean class_0": lambda m: m.generate("clas_0"),
    "label must be a class of the model, got 'SS_1'; did you mean class_1": lambda m: m.generate("SS_1"),
    "label must be a class of the model, got '7'": lambda m: m.generate(7),
    "label must be a class of the model, got '-1'": lambda m: m.generate(-1),
    "iterations must be a whole number from 1 to 16, got 0": lambda m: m.generate(0, iterations=0),
    "diffusion_steps must be a whole number from 2 to 16, got 1": lambda m: m.generate(0, diffusion_steps=1),
    "diffusion_steps must be a whole number from 2 to 16, got 17": lambda m: m.generate(0, diffusion_steps=(4, 17)),
    "diffusion_steps must be one number, or the first": lambda m: m.generate(0, diffusion_steps=[4, 3, 2]),
    "guidance_scale must be a number, 0 or more, got nan": lambda m: m.generate(0, guidance_scale=float("nan")),
    "seed must be a whole number from 0 to 9223372036854775807, got -1": lambda m: m.generate(0, seed=-1),
    "variants must be a whole number from 1 to 1024, got 0": lambda m: m.generate(0, variants=0),
    "labels must name at least one class": lambda m: m.generate([]),
    "mask: nothing is marked": lambda m: m.inpaint(picture(), np.zeros((4, 4), np.uint8)),
    "blend must be feather, poisson or none, got featherr": lambda m: m.inpaint(
        picture(), lower_half(), blend="featherr"
    ),
    "label must be the class to paint, got None": lambda m: m.edit(picture(), lower_half(), None),
    "outpaint: give either box": lambda m: m.outpaint(picture()),
    "outpaint: nothing is left to paint": lambda m: m.outpaint(picture(), margins=0),
    "box must be a part of the image of 8×8 pixels, got (0, 0, 99, 9)": lambda m: m.outpaint(
        picture(), box=(0, 0, 99, 9)
    ),
    "margins must be 0 or more pixels (left, top, right, bottom), got (-1,": lambda m: m.outpaint(
        picture(), margins=(-1, 0, 0, 0)
    ),
    f"box {FOUR} (1, 2, 3)": lambda m: m.outpaint(picture(), box=(1, 2, 3)),
    f"box {FOUR} (0.5, 1, 3, 3)": lambda m: m.outpaint(picture(), box=(0.5, 1, 3, 3)),
    f"margins {FOUR} 2.5": lambda m: m.outpaint(picture(), margins=2.5),
    f"{LARGE} 30000×30000": lambda m: m.outpaint(picture(), margins=(29_992, 0, 0, 29_992)),
    "guidance_scale must be a number, 0 or more, got x": lambda m: m.generate(0, guidance_scale="x"),
    "steps must be a whole number from 2 to 1024, got 2.5": lambda m: m.interpolate(0, 1, 2.5),
    "rounds must be a whole number from 1 to 4, got 1.5": lambda m: m.enrich(picture(), rounds=1.5),
    "layer must be a whole number from 1 to 2, got 1.5": lambda m: m.features(picture(), 1.5),
    "image: has no pixels": lambda m: m.reconstruct(Image.new("RGB", (0, 5))),
    "image: has no pixels ": lambda m: m.reconstruct(torch.zeros(3, 0, 5)),
    "mask: has no pixels": lambda m: m.inpaint(picture(), torch.zeros(0, 5)),
    "image: " + "a" * 300 + ": no such file": lambda m: m.reconstruct("a" * 300),
    f"{LARGE} 90008×8": lambda m: m.outpaint(picture(), margins=(90_000, 0, 0, 0)),
    "steps must be a whole number from 2 to 1024, got 1": lambda m: m.interpolate(0, 1, 1),
    "rounds must be a whole number from 1 to 4, got 9": lambda m: m.enrich(picture(), rounds=9),
    "layer must be a whole number from 1 to 2, got 0": lambda m: m.features(picture(), 0),
    "images must be at least one image": lambda m: m.features([]),
    "image: nowhere.png: no such file": lambda m: m.reconstruct("nowhere.png"),
    "image: a tensor of floats must be in [0, 1], got [7, 7]": lambda m: m.reconstruct(torch.full((3, 4, 4), 7.0)),
    "image: a tensor must be [3, H, W]": lambda m: m.reconstruct(torch.zeros(2, 3, 4, 4)),
    "image: an array must be uint8": lambda m: m.reconstruct(np.zeros((4, 4, 7), np.uint8)),
    "image must be a PIL image, a path, a tensor or an array, got int": lambda m: m.reconstruct(3),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_callers_mistake_is_one_line_that_names_it(model: ImageModel, message: str) -> None:
    with pytest.raises(BigrError) as caught:
        WRONG[message](model)
    assert str(caught.value).startswith(message.rstrip())
    assert "\n" not in str(caught.value)


def test_a_model_trained_without_labels_paints_no_class(model: ImageModel) -> None:
    unlabelled = ImageModel(model.sampler, model.sampling, model.editing, model.classes, knows_labels=False)
    assert same(unlabelled.inpaint(picture(), lower_half()), model.inpaint(picture(), lower_half()))
    for call in (
        lambda: unlabelled.inpaint(picture(), lower_half(), label=1),
        lambda: unlabelled.outpaint(picture(), margins=2, label=1),
        lambda: unlabelled.edit(picture(), lower_half(), 1),
    ):
        with pytest.raises(BigrError, match="trained without labels"):
            call()


def test_a_text_file_that_is_called_a_picture_is_named(model: ImageModel, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not a picture")
    for call in (model.reconstruct, lambda path: model.inpaint(picture(), path)):
        with pytest.raises(BigrError, match=r"notes.png: not a JPEG, PNG or WebP image"):
            call(tmp_path / "notes.png")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(BigrError, match="no model there"):
        bigr.load(tmp_path)
    with pytest.raises(BigrError, match="no such version"):
        bigr.load("models:/bigr@champion")


def test_classes_have_the_names_of_the_shards_and_the_sampler_of_params(
    project: Path, model: ImageModel, tmp_path: Path
) -> None:
    assert model.classes == ("class_0", "class_1", "class_2")
    assert (model.size, model.num_layers) == (SIZE, 2)
    shutil.copytree(project / "models", tmp_path / "models")
    alone = bigr.load(tmp_path)
    assert (alone.classes, alone.sampling.guidance_scale) == (
        ("0", "1", "2"),
        2.5,
    )  # no project around it: as in the paper
    shutil.copy(ROOT / "params.yaml", tmp_path)
    tiny.apply(tmp_path / "params.yaml", tiny.OVERRIDES | {"samples.guidance_scale": 3.5, "editing.feather": 0.25})
    own = bigr.load(tmp_path / "models")
    assert (own.sampling.guidance_scale, own.editing.feather) == (3.5, 0.25)
    assert bigr.load(tmp_path, params=ROOT / "params.yaml").sampling.guidance_scale != 3.5


def test_the_same_pictures_of_the_validation_split_can_be_reconstructed(project: Path, model: ImageModel) -> None:
    images, _ = load_split(project / "data" / "shards", "train")
    codes = model.sampler.tokenizer.codes(images[:1].float() / 255)
    expected = draw_samples.decoded(model.sampler.tokenizer, codes)[0].numpy()
    assert np.array_equal(np.asarray(model.reconstruct(images[0])), expected)
