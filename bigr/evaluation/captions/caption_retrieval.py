"""Caption retrieval: how often a judge of images and texts picks an image's own caption among ten.

The nine others are drawn from the captions of the other images, with a fixed seed. Chance is 10 %. Captions that are
the same text are one; captions that say the same in other words are not, and count against the image.
"""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bigr.evaluation.evaluation_parts import Attempt, NotApplicable, Parts
from bigr.evaluation.imagesets.image_stream import ImageStream
from bigr.evaluation.protocol import EVALUATION_SEED
from bigr.runtime.distributed import my_range, of_each, together
from bigr.runtime.seeds import derive_seed
from bigr.text.encoder import cleaned

CANDIDATES = 10
"""Captions among which the judge picks one: the image's own, and nine others."""

CLIP_SCORES = {"top1": "clip_score", "train_top1": "train_clip_score", "judge_accuracy": "real_clip_score"}
"""Of which metrics of retrieval CLIP's score is reported too, and its name."""


class Judge(Protocol):
    """Puts images and texts into one space. about: its name and the hash of its weights, for outputs/protocol.json."""

    @property
    def about(self) -> dict[str, str]: ...

    def see(self, images: Tensor) -> Tensor:
        """Images uint8 [B, 3, H, W] on the CPU → vectors of length 1, float [B, D] on the CPU."""

    def read(self, texts: Sequence[str]) -> Tensor:
        """Texts, each with a word → vectors of length 1, float [B, D] on the CPU."""


class CaptionedSet(NamedTuple):
    """A set of images, and what each is said to show."""

    images: ImageStream
    texts: Sequence[str]


def retrieval_metrics(similar_in: Mapping[str, Attempt[Tensor]], parts: Parts, *, scores: bool) -> dict[str, float]:
    """`top1` of each set under its name, each a part of its own; scores: and `clip_score` of those in `CLIP_SCORES`.

    similar_in: the `similarities` of each set. One with too few different captions is left out.
    """
    found: dict[str, float] = {}
    for name, attempt in similar_in.items():
        with parts(f"retrieval.{name}"):
            similar = attempt.result()
            found[name] = top1(similar)
            if scores and name in CLIP_SCORES:
                found[CLIP_SCORES[name]] = clip_score(similar)
    return found


def similarities(judge: Judge, images: ImageStream, texts: Sequence[str], batch_size: int) -> Tensor:
    """The cosine similarity of each image to `CANDIDATES` texts, float [n, 10], its own first.

    Images whose text has no word are left out. Each process looks at its share of the images, and reads its share of
    the texts. Raises `NotApplicable` where there are fewer than ten different texts.
    """
    own = [cleaned(text) for text in texts]
    distinct = sorted(set(own) - {""})
    if len(distinct) < CANDIDATES:
        raise NotApplicable(f"there are {len(distinct)} different captions; retrieval is among {CANDIDATES}")
    numbers = {text: number for number, text in enumerate(distinct)}
    draws = random.Random(derive_seed(EVALUATION_SEED, "caption retrieval"))
    candidates: list[list[int]] = []
    for text in own[: len(images)]:
        others = draws.sample(range(len(distinct) - 1), CANDIDATES - 1) if text else []
        candidates.append([numbers[text], *(other + (other >= numbers[text]) for other in others)] if text else [])
    words, mine = my_range(len(distinct), batch_size), my_range(len(images), batch_size)
    some_read = together(lambda: [judge.read(distinct[i : i + batch_size]) for i in words[::batch_size]])
    read = torch.cat([batch for of_one in of_each(some_read) for batch in of_one])

    def compared() -> Tensor:
        vectors = (vector for batch in images.batches(batch_size, mine) for vector in judge.see(batch))
        own_and_others = candidates[mine.start : mine.stop]
        found = [read[ten] @ vector for ten, vector in zip(own_and_others, vectors, strict=True) if ten]
        return torch.stack(found) if found else read.new_zeros(0, CANDIDATES)

    return torch.cat(of_each(together(compared)))


def top1(similar: Tensor) -> float:
    """The share of images [n, 10] that are nearer to their own caption than to every other."""
    return float((similar[:, 0] > similar[:, 1:].amax(1)).double().mean())


def clip_score(similar: Tensor) -> float:
    """100 × the mean over images [n, 10] of the cosine similarity to their own caption, negative ones as 0.

    Hessel et al., arXiv 2104.08718, whose weight is 2.5 in place of 100.
    """
    return float(100 * similar[:, 0].clamp(min=0).double().mean())
