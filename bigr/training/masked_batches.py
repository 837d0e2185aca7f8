"""Batches of codes with masked tokens, for training and validation (docs/method.md, section 2, "Masking in training").

Seed and epoch fix the order. Drawn for each step: which labels become unconditional, one count of masked tokens for the
batch, their positions in each image, and which visible bits are flipped. Of codes with draws of the bits, each epoch
uses the next draw, and never the thresholded bits.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bigr.data.codes import CodesDataset
from bigr.models.masked.generator import BiGR, gather_tokens, masked_count
from bigr.runtime.distributed import share
from bigr.runtime.seeds import WHOLE_BATCH, derive_seed, generator


class MaskedBatch(NamedTuple):
    """codes: float [B, N, K], 0 or 1; labels: int64 [B], or texts (`bigr.models.masked.text_conditions`); masked: int64
    [B, m], the positions that are masked.

    The bits at these positions are the targets; the others are what the backbone reads, some of them flipped.
    """

    codes: Tensor
    labels: Tensor
    masked: Tensor


class MaskedBatches:
    """The training stream of one process: its share of each global batch of `batch_size`, on the CPU.

    label_dropout: the probability in [0, 1] that a label or text becomes none (1: trained without labels); input_flip:
    that a visible bit is flipped.
    """

    def __init__(
        self,
        dataset: CodesDataset,
        batch_size: int,
        *,
        stage: str,
        seed: int,
        label_dropout: float,
        input_flip: float,
    ) -> None:
        self.dataset, self.batch_size, self.stage, self.seed = dataset, batch_size, stage, seed
        self.label_dropout, self.input_flip = label_dropout, input_flip
        self._shuffled = (
            -1,
            torch.empty(0, dtype=torch.long),
        )  # an epoch and its order, replaced as one: threads read it

    def indices(self, step: int) -> Tensor:
        """The images of a step's global batch, int64 [B]. An epoch is a permutation; a batch may span two epochs."""
        length, first = len(self.dataset), step * self.batch_size
        parts: list[Tensor] = []
        while (missing := self.batch_size - sum(map(len, parts))) > 0:
            epoch, offset = divmod(first + self.batch_size - missing, length)
            known, order = self._shuffled
            if epoch != known:
                order = torch.randperm(length, generator=generator(self.seed, self.stage, "order", epoch))
                self._shuffled = epoch, order
            parts.append(order[offset : offset + missing])
        return torch.cat(parts)

    def drawn(self, step: int) -> Tensor:
        """The draw of each image of a step's global batch, int64 [B]: the next one in each epoch."""
        places = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return _next_draw(self.dataset, places // len(self.dataset))

    def describe(self, step: int) -> str:
        """Words that name the batch of a step, for an error."""
        shown = ", ".join(map(str, self.indices(step)[:4].tolist()))
        return f"(batch {step}: training codes {shown}, …)"

    def from_step(self, step: int) -> Iterator[MaskedBatch]:
        """Batches from `step` on, without end."""
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> MaskedBatch:
        """This process's share of the batch of a step.

        What is drawn follows from the seed, the step and the place in the global batch: each process draws for all of
        it and takes its rows.
        """
        whole, rows = self.batch_size, share(self.batch_size)
        mine = self.indices(step)[rows]
        draws = generator(self.seed, self.stage, "batch", step, WHOLE_BATCH)
        views = torch.randint(len(self.dataset.views), (whole,), generator=draws)[rows]
        codes, labels = self.dataset.batch(mine, views, self.drawn(step)[rows])
        dropped = torch.rand(whole, generator=draws)[rows] < self.label_dropout
        labels = self.dataset.conditions(mine, labels)
        dropped = dropped.view(-1, *[1] * (labels.ndim - 1))
        labels = labels.masked_fill(dropped, self.dataset.unconditional)
        tokens = codes.shape[1]
        shared = derive_seed(self.seed, self.stage, "count", step)  # the same in all processes
        count = masked_count(shared % tokens, tokens)
        masked = torch.rand((whole, tokens), generator=draws)[rows].argsort(dim=1)[:, :count]
        if self.input_flip:
            flipped = torch.rand((whole, *codes.shape[1:]), generator=draws)[rows] < self.input_flip
            codes = codes ^ flipped.scatter(1, masked.unsqueeze(-1).expand(-1, -1, codes.shape[2]), False)
        return MaskedBatch(codes.float(), labels, masked)


def _next_draw(dataset: CodesDataset, epochs: Tensor) -> Tensor:
    """The draw of the bits in each epoch; 0, the thresholded bits, where there are no draws."""
    return 1 + epochs % dataset.draws if dataset.draws else torch.zeros_like(epochs)


class FixedMasks:
    """Validation batches that are the same at every call: fixed images, bits, masks and noise.

    images: at most this many of the split; each is masked once, with counts spread evenly over the schedule;
    with_labels: whether their labels or texts are told.
    """

    def __init__(self, dataset: CodesDataset, images: int, seed: int, device: torch.device, with_labels: bool) -> None:
        self.seed, self.device = seed, device
        count = min(images, len(dataset))
        places = torch.arange(count)
        codes, labels = dataset.batch(places, 0, _next_draw(dataset, torch.zeros(count, dtype=torch.long)))
        labels = dataset.conditions(places, labels)
        if not with_labels:
            labels = torch.full_like(labels, dataset.unconditional)
        tokens = codes.shape[1]
        draws = generator(seed, "validation", "masks")
        order = torch.rand(codes.shape[:2], generator=draws).argsort(dim=1)
        # A group of images has one mask count, so that it is a batch.
        groups = min(8, count)
        self.batches: list[MaskedBatch] = []
        for group in range(groups):
            mine = torch.arange(group, count, groups)
            masked = order[mine, : masked_count(tokens * (group + 0.5) / groups, tokens)]
            parts = (codes[mine].float(), labels[mine], masked)
            self.batches.append(MaskedBatch(*(t.to(device) for t in parts)))

    def noise(self) -> torch.Generator:
        """A generator for the draws of the diffusion, in the same state at every call."""
        return generator(self.seed, "validation", "noise", device=self.device)


@torch.no_grad()
def hidden_of(model: BiGR, batch: MaskedBatch) -> Tensor:
    """The frozen backbone's h of the masked tokens of a batch, float [B·m, D]."""
    mask = torch.zeros(batch.codes.shape[:2], dtype=torch.bool, device=batch.codes.device)
    return gather_tokens(model.hidden(batch.codes, batch.labels, mask.scatter_(1, batch.masked, True)), batch.masked)
