"""What the generator is trained on: codes with masked tokens (docs/method.md, section 2, "Masking in training").

A stream of batches from the codes on disk, in an order that seed and epoch fix, and the draws of a step: labels that
become unconditional, one count of masked tokens per batch, positions per image. Where bits were drawn from their
probabilities, each epoch shows the next of an image's draws; the thresholded bits are then never trained on.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bigr.data.codes import CodesDataset
from bigr.models.masked.generator import BiGR, gather_tokens, masked_count
from bigr.runtime.distributed import rank, share
from bigr.runtime.seeds import derive_seed, generator
from bigr.runtime.transfer import to_device


class MaskedBatch(NamedTuple):
    """codes: float [B, N, K]; labels: int64 [B]; masked: int64 [B, m], the positions that are masked."""

    codes: Tensor
    labels: Tensor
    masked: Tensor


class MaskedBatches:
    """The training stream of one process: its share of each global batch, on `device`.

    label_dropout: the probability that a label becomes `unconditional` (1: trained without labels).
    """

    def __init__(
        self,
        dataset: CodesDataset,
        batch_size: int,
        *,
        stage: str,
        seed: int,
        label_dropout: float,
        unconditional: int,
        device: torch.device,
    ) -> None:
        self.dataset, self.batch_size, self.stage, self.seed = dataset, batch_size, stage, seed
        self.label_dropout, self.unconditional, self.device = label_dropout, unconditional, device
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def indices(self, step: int) -> Tensor:
        """The images of a step's global batch, int64 [B]; each epoch is one permutation, and batches may span two."""
        length, first = len(self.dataset), step * self.batch_size
        parts: list[Tensor] = []
        while (missing := self.batch_size - sum(map(len, parts))) > 0:
            epoch, offset = divmod(first + self.batch_size - missing, length)
            if epoch != self._epoch:
                order = generator(self.seed, self.stage, "order", epoch)
                self._epoch, self._order = epoch, torch.randperm(length, generator=order)
            parts.append(self._order[offset : offset + missing])
        return torch.cat(parts)

    def drawn(self, step: int) -> Tensor:
        """Which draw of its bits each image of a step's global batch shows, int64 [B]: the next in each epoch."""
        places = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return _next_draw(self.dataset, places // len(self.dataset))

    def describe(self, step: int) -> str:
        """Names the batch of a step, for an error."""
        shown = ", ".join(map(str, self.indices(step)[:4].tolist()))
        return f"(batch {step}: training codes {shown}, …)"

    def from_step(self, step: int) -> Iterator[MaskedBatch]:
        """Batches from that step on, without end."""
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> MaskedBatch:
        """The batch of a step; every draw is derived from the seed, the step and this process's number."""
        mine = self.indices(step)[share(self.batch_size)]
        draws = generator(self.seed, self.stage, "batch", step, rank())
        views = torch.randint(len(self.dataset.views), (len(mine),), generator=draws)
        codes, labels = self.dataset.batch(mine, views, self.drawn(step)[share(self.batch_size)])
        dropped = torch.rand(len(mine), generator=draws) < self.label_dropout
        labels = torch.where(dropped, self.unconditional, labels)
        tokens = codes.shape[1]
        count = masked_count(
            derive_seed(self.seed, self.stage, "count", step) % tokens, tokens
        )  # one for all processes
        masked = torch.rand(codes.shape[:2], generator=draws).argsort(dim=1)[:, :count]
        codes, labels, masked = (to_device(t, self.device) for t in (codes, labels, masked))
        return MaskedBatch(codes.float(), labels, masked)


def _next_draw(dataset: CodesDataset, epochs: Tensor) -> Tensor:
    """Draws of the bits for epochs; 0, the thresholded bits, where there are no draws."""
    return 1 + epochs % dataset.draws if dataset.draws else torch.zeros_like(epochs)


class FixedMasks:
    """A validation that is the same at every call: fixed images, bits, masks and noise.

    images: at most this many of the split; each is masked once, by counts spread evenly over the schedule.
    """

    def __init__(self, dataset: CodesDataset, images: int, seed: int, device: torch.device, unconditional: int | None):
        self.seed, self.device = seed, device
        count = min(images, len(dataset))
        codes, labels = dataset.batch(torch.arange(count), 0, _next_draw(dataset, torch.zeros(count, dtype=torch.long)))
        if unconditional is not None:
            labels = torch.full_like(labels, unconditional)
        tokens = codes.shape[1]
        draws = generator(seed, "validation", "masks")
        order = torch.rand(codes.shape[:2], generator=draws).argsort(dim=1)
        # Images are dealt to groups of one mask count each, so that a group is a batch of static shape.
        groups = min(8, count)
        self.batches: list[MaskedBatch] = []
        for group in range(groups):
            mine = torch.arange(group, count, groups)
            masked = order[mine, : masked_count(tokens * (group + 0.5) / groups, tokens)]
            parts = (codes[mine].float(), labels[mine], masked)
            self.batches.append(MaskedBatch(*(t.to(device) for t in parts)))

    def noise(self) -> torch.Generator:
        """A generator for the diffusion's draws, in the same state at every call."""
        return generator(self.seed, "validation", "noise", device=self.device)


@torch.no_grad()
def hidden_of(model: BiGR, batch: MaskedBatch) -> Tensor:
    """h of the masked tokens of a batch, as rows [B·m, D], from the frozen backbone."""
    mask = torch.zeros(batch.codes.shape[:2], dtype=torch.bool, device=batch.codes.device)
    return gather_tokens(model.hidden(batch.codes, batch.labels, mask.scatter_(1, batch.masked, True)), batch.masked)
