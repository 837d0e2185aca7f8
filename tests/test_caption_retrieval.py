"""Retrieval of captions: what counts as right, the judge that is trained here, and CLIP."""

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from torch import Tensor
from torch.nn import functional as F

from bigr.data.picture_grid import save_captioned_grid, wrapped
from bigr.evaluation.captions.caption_retrieval import (
    CANDIDATES,
    CaptionedSet,
    clip_score,
    retrieval_metrics,
    similarities,
    top1,
)
from bigr.evaluation.captions.clip_judge import ClipJudge
from bigr.evaluation.captions.trained_judge import LARGEST_SIDE, CaptionJudge, train_judge
from bigr.evaluation.evaluation_parts import Attempt, NotApplicable, Parts
from bigr.evaluation.imagesets.image_stream import ImageStream
from bigr.runtime.errors import BigrError
from tests.text_encoders import write_clip, write_frozen
from tests.worlds import settings

CPU = torch.device("cpu")


class Told:
    """A judge that reads "caption 7" as unit vector 7, and sees the vector that an image's first pixel names."""

    def __init__(self) -> None:
        self.about = {"name": "told", "hash": ""}
        self.asked: list[list[str]] = []

    def see(self, images: Tensor) -> Tensor:
        return torch.eye(256)[images[:, 0, 0, 0].long()]

    def read(self, texts: Sequence[str]) -> Tensor:
        self.asked.append(list(texts))
        return torch.eye(256)[[int(text.split()[1]) for text in texts]]


def stream(numbers: Sequence[int]) -> ImageStream:
    """Images, each with its number in every pixel."""
    images = torch.tensor(numbers, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    return ImageStream(len(images), lambda: iter(images))


TEXTS = [f"caption {number}" for number in range(12)]


def test_an_image_is_right_where_its_own_caption_is_the_nearest_of_ten() -> None:
    assert top1(similarities(Told(), stream(range(12)), TEXTS, 5)) == 1.0
    half = [number if number % 2 else 200 for number in range(12)]  # 200: near to no caption, equally far from all
    found = similarities(Told(), stream(half), TEXTS, 5)
    assert found.shape == (12, CANDIDATES) and top1(found) == 0.5
    assert clip_score(found) == 50.0 and clip_score(-found) == 0.0


def test_the_nine_others_are_other_captions_and_the_same_every_time() -> None:
    seen_as_zero = similarities(Told(), stream([0] * 12), TEXTS, 12)
    assert seen_as_zero[0, 0] == 1 and (seen_as_zero[0, 1:] == 0).all()  # its own is not among the others
    assert (seen_as_zero[1:, 0] == 0).all() and (seen_as_zero.sum(1) <= 1).all()  # none is there twice
    assert 5 <= seen_as_zero[1:, 1:].sum() <= 11  # of eleven others, nine are drawn
    assert torch.equal(similarities(Told(), stream([0] * 12), TEXTS, 3), seen_as_zero)


def test_equal_captions_are_one_and_those_without_a_word_are_left_out() -> None:
    texts = [*TEXTS, "caption  0", " \x00", "caption 3"]
    judge = Told()
    found = similarities(judge, stream([*range(12), 0, 9, 4]), texts, 100)
    assert [sorted(texts) for texts in judge.asked] == [sorted(TEXTS)]
    assert len(found) == 14 and top1(found) == 13 / 14


def test_fewer_captions_than_ten_are_left_out_and_the_other_sets_are_measured() -> None:
    with pytest.raises(NotApplicable, match="there are 9 different captions; retrieval is among 10"):
        similarities(Told(), stream(range(9)), TEXTS[:9], 5)
    parts = Parts()
    sets = {"top1": CaptionedSet(stream([0]), ["caption 0"]), "train_top1": CaptionedSet(stream(range(12)), TEXTS)}
    similar = {name: Attempt(partial(similarities, Told(), *of_one, 5)) for name, of_one in sets.items()}
    assert retrieval_metrics(similar, parts, scores=False) == {"train_top1": 1.0}
    assert list(parts.left_out) == ["retrieval.top1"] and parts.measured == ["retrieval.train_top1"]
    assert retrieval_metrics(similar, Parts(), scores=True) == {"train_top1": 1.0, "train_clip_score": 100.0}


# The judge that is trained here: colours above colours; some pairs are in no training image.

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 30), "blue": (30, 60, 200), "white": (240, 240, 240)}
PAIRS = [pair for pair in product(COLOURS, COLOURS) if pair[0] != pair[1]]
HELD_OUT = [("red", "blue"), ("green", "white")]


def halves(pairs: Sequence[tuple[str, str]], size: int = 8) -> tuple[ImageStream, list[str]]:
    """Images of one colour over another with noise, and captions whose words do not need an order."""
    draws = np.random.default_rng(0)
    images = np.empty((len(pairs), size, size, 3))
    for image, (above, below) in zip(images, pairs, strict=True):
        image[: size // 2], image[size // 2 :] = COLOURS[above], COLOURS[below]
    noisy = (images + draws.normal(0, 10, images.shape)).clip(0, 255).astype(np.uint8)
    tensors = torch.from_numpy(noisy).permute(0, 3, 1, 2)
    return ImageStream(len(pairs), lambda: iter(tensors)), [f"top{above} bottom{below}" for above, below in pairs]


def section(**changes: Any) -> Any:
    named = {f"evaluation__{key}": value for key, value in changes.items()}
    return settings(**named).evaluation


def test_the_judge_learns_captions_and_knows_pairs_that_it_has_not_seen() -> None:
    training = halves([pair for pair in PAIRS if pair not in HELD_OUT] * 12)
    chosen = section(judge_steps=60, judge_batch_size=64, judge_width=32)
    before = torch.get_rng_state()
    judge = train_judge(chosen, *training, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    images, texts = halves(PAIRS)
    found = similarities(judge, images, texts, 8)
    assert top1(found) >= 0.8
    of_held_out = [place for place, pair in enumerate(PAIRS) if pair in HELD_OUT]
    assert (found[of_held_out, 0] > found[of_held_out, 1:].mean(1)).all()
    untrained = train_judge(section(judge_steps=1, judge_width=32), *training, CPU)
    assert top1(similarities(untrained, images, texts, 8)) < 0.5
    assert top1(similarities(judge, images, [*texts[1:], texts[0]], 8)) < 0.3  # captions of other images


def test_the_judge_is_the_same_every_time_and_takes_any_number_of_steps() -> None:
    training = halves(PAIRS)
    for steps in (1, 2, 3, 4):
        chosen = section(judge_steps=steps, judge_batch_size=4, judge_width=8)
        first, again = (train_judge(chosen, *training, CPU) for _ in range(2))
        assert first.about == again.about and len(first.about["hash"]) == 64


def test_images_of_the_same_caption_are_not_told_apart_in_training() -> None:
    images, texts = halves([PAIRS[0]] * 3)
    judge = train_judge(section(judge_steps=1, judge_batch_size=4, judge_width=8), images, texts, CPU)
    batch, tokens = images.first(3, 3).float() / 255, torch.ones(3, 2, dtype=torch.int64)
    assert judge.loss(batch, tokens, torch.tensor([0, 0, 0])) == 0
    assert judge.loss(batch, tokens, torch.tensor([0, 1, 2])) > 1


def test_large_images_are_reduced_and_images_without_captions_are_left_out() -> None:
    images, texts = halves(PAIRS, size=2 * LARGEST_SIDE)
    texts[0] = " "
    judge = train_judge(section(judge_steps=1, judge_batch_size=4, judge_width=8), images, texts, CPU)
    assert isinstance(judge, CaptionJudge) and judge.images.config.image_size == LARGEST_SIDE
    assert judge.see(images.first(2, 2)).shape == (2, 8)
    with pytest.raises(NotApplicable, match="no training caption has a word"):
        train_judge(section(), images, [" "] * len(images), CPU)


# CLIP


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def test_clip_judges_by_its_two_projections(clip: Path) -> None:
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    judge, model = ClipJudge(clip, CPU), CLIPModel.from_pretrained(clip).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    texts = ["a small red circle", "two", "a red circle " * 50]
    pixels = CLIPImageProcessor.from_pretrained(clip)(
        [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images], return_tensors="pt"
    )
    with torch.no_grad():
        for place, text in enumerate(texts):
            tokens = AutoTokenizer.from_pretrained(clip)(text, return_tensors="pt", truncation=True, max_length=12)
            found = model(**tokens, pixel_values=pixels["pixel_values"])
            assert torch.allclose(judge.read(texts)[place], F.normalize(found.text_embeds[0], dim=0), atol=1e-5)
    assert torch.allclose(judge.see(images), F.normalize(found.image_embeds, dim=1), atol=1e-5)
    assert judge.about["name"] == "clip" and len(judge.about["hash"]) == 64


def test_a_folder_that_is_no_whole_clip_is_one_line(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cases = {
        write_frozen(tmp_path / "text", "clip"): "a model of type clip_text_model; it must be a whole CLIP",
        tmp_path / "empty": r"cannot be loaded .*it must be a folder with config.json",
    }
    for folder, said in cases.items():
        with pytest.raises(BigrError, match=f"evaluation.clip.*{said}") as caught:
            ClipJudge(folder, CPU)
        assert "\n" not in str(caught.value)


# Captions in pictures


def test_captions_are_below_their_images_and_images_are_not_changed(tmp_path: Path) -> None:
    images = torch.full((3, 3, 16, 16), 128, dtype=torch.uint8)
    save_captioned_grid(tmp_path / "a.png", images, ["a red circle", "", "two " * 40], columns=2)
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("L")).astype(int)
    assert (pixels == 128).sum() >= 3 * 112**2  # each enlarged seven times
    above, beside = pixels[8 : 8 + 112, 8 : 8 + 112], pixels[8 + 112 : 8 + 112 + 15, 8 + 112 + 8 :]
    assert (above == 128).all() and (beside == 255).all()
    assert (pixels[8 + 112 : 8 + 112 + 15, 8 : 8 + 112] < 100).sum() > 20  # the first caption


@pytest.mark.parametrize("text", ["a b", "x" * 200, "a word " * 50, "赤い円 " * 30, "a\x00b\nc\u202ed", ""])
def test_lines_fit_the_width_and_are_four_at_most(text: str) -> None:
    font = ImageFont.load_default(12)
    lines = wrapped(text, font, 112)
    assert len(lines) <= 4 and all(font.getlength(line) <= 112 for line in lines)
    assert all(line.isprintable() for line in lines)
    short = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    assert " ".join(lines) == short or lines[-1].endswith("…") or " " not in short
