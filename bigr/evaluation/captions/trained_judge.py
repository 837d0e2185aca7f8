"""The offline judge of captions: a small CLIP, trained on the captioned training images where no weights are at hand.

As the offline classifier it is part of the evaluation protocol: trained on the training split alone, with
`EVALUATION_SEED`, so that it is the same for every model. It knows only what the training captions and images show, and
a text is the sum of its byte pairs: it does not know the order of words.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigr.evaluation.evaluation_parts import NotApplicable
from bigr.evaluation.fidelity.classifier import Classifier, ClassifierConfig, one_thread, shifted
from bigr.evaluation.imagesets.image_stream import ImageStream
from bigr.evaluation.protocol import EVALUATION_SEED
from bigr.runtime.progress import Progress
from bigr.runtime.seeds import derive_seed, generator
from bigr.runtime.transfer import to_device
from bigr.text.byte_pairs import BytePairs
from bigr.text.encoder import cleaned

if TYPE_CHECKING:
    from bigr.config import EvaluationSettings

LARGEST_SIDE = 64
"""Images are seen at this size at most: the mean of each block of pixels. So the training images fit in memory."""
_LONGEST = 256
"""Byte pairs of a text that are read."""
_TEMPERATURE = 0.07
"""CLIP's at the start; it is learned."""
_LARGEST_SCALE = math.log(100)
"""CLIP's."""
_READ_TOGETHER = 1000


class CaptionJudge(nn.Module):
    """Two towers into D dimensions: the offline classifier's network for images, the sum of byte pairs for texts."""

    def __init__(self, encoder: BytePairs, image_size: int, section: "EvaluationSettings") -> None:
        super().__init__()
        self.encoder, width = encoder, section.judge_width
        self.images = Classifier(image_tower(image_size, section))
        self.texts = nn.EmbeddingBag(encoder.shape["text_vocabulary"], width, mode="sum", padding_idx=0)
        nn.init.normal_(self.texts.weight, std=width**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(1 / _TEMPERATURE).log())

    @property
    def about(self) -> dict[str, str]:
        from bigr.evaluation.fidelity.extractors import weights_hash  # imports torch-fidelity; `bigr plan` does without

        return {"name": "trained", "hash": weights_hash(self.state_dict())}

    def seen(self, images: Tensor) -> Tensor:
        """Images float [B, 3, S, S] in [0, 1] → vectors of length 1, [B, D]."""
        return F.normalize(self.images(images), dim=1)

    def said(self, tokens: Tensor) -> Tensor:
        """Numbers of byte pairs [B, L], zeros behind them → vectors of length 1, [B, D]."""
        return F.normalize(self.texts(tokens), dim=1)

    @torch.no_grad()
    def see(self, images: Tensor) -> Tensor:
        return self.seen(to_device(_small(images), self.log_scale.device).float() / 255).cpu()

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:
        return self.said(to_device(_numbers(self.encoder, texts), self.log_scale.device)).cpu()

    def loss(self, images: Tensor, tokens: Tensor, numbers: Tensor) -> Tensor:
        """CLIP's symmetric cross-entropy over a batch; images of the same caption (`numbers` [B]) are not compared."""
        logits = self.log_scale.clamp(max=_LARGEST_SCALE).exp() * self.seen(images) @ self.said(tokens).T
        same = numbers[:, None] == numbers
        same.fill_diagonal_(fill_value=False)
        logits = logits.masked_fill(same, -torch.inf)
        own = torch.arange(len(images), device=images.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def image_tower(side: int, section: "EvaluationSettings") -> ClassifierConfig:
    """The shape of the judge's network for images: the offline classifier's, with vectors in place of logits."""
    return ClassifierConfig(side, section.judge_width, section.classifier_channels, section.judge_width)


def train_judge(
    section: "EvaluationSettings", images: ImageStream, captions: Sequence[str], device: torch.device
) -> CaptionJudge:
    """The judge of the settings `evaluation`, in evaluation mode, from images of the training split and their captions.

    AdamW, one-cycle schedule, float32. One thread: the same images give the same judge on the same machine. Raises
    `NotApplicable` where no caption has a word.
    """
    words = [place for place, caption in enumerate(captions) if cleaned(caption)]
    if not words:
        raise NotApplicable("no training caption has a word")
    pixels = torch.cat([_small(batch) for batch in images.batches(_READ_TOGETHER)])[words]
    captions = [captions[place] for place in words]
    encoder = BytePairs.learned(captions, section.judge_vocabulary, _LONGEST)
    tokens = _numbers(encoder, captions)
    distinct = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    numbers = torch.tensor([distinct[caption] for caption in captions])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(EVALUATION_SEED, "caption judge", "init"))
        judge = CaptionJudge(encoder, pixels.shape[-1], section)
    judge.to(device).train()
    rate, steps = section.judge_learning_rate, section.judge_steps
    optimizer = torch.optim.AdamW(judge.parameters(), lr=rate, weight_decay=section.judge_weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    with one_thread(), Progress("caption judge", steps) as progress:
        for step in range(steps):
            draws = generator(EVALUATION_SEED, "caption judge", step)
            mine = torch.randint(len(pixels), (section.judge_batch_size,), generator=draws)
            batch = shifted(pixels[mine].float() / 255, draws)
            # drawn images are not as clean as real ones
            batch = (batch + section.judge_noise * torch.randn(batch.shape, generator=draws)).clamp(0, 1)
            loss = judge.loss(*(to_device(one, device) for one in (batch, tokens[mine], numbers[mine])))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.advance()
    return judge.eval().requires_grad_(False)


def _small(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] at `LARGEST_SIDE` pixels at most."""
    if images.shape[-1] <= LARGEST_SIDE:
        return images
    return F.adaptive_avg_pool2d(images.float(), LARGEST_SIDE).round().byte()


def _numbers(encoder: BytePairs, texts: Sequence[str]) -> Tensor:
    """Numbers of byte pairs, int64 [n, L], zeros behind them."""
    arrays = encoder.read(texts)
    found = np.zeros((len(arrays), max(map(len, arrays))), dtype=np.int64)
    for row, array in zip(found, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(found)
