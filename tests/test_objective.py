"""The training objective: what is masked, which labels are dropped, and the loss of the masked tokens, bit by bit."""

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.training.masked_batches import FixedMasks, MaskedBatch, MaskedBatches
from tests.worlds import write_codes

GRID, BITS, CLASSES, STEPS = 4, 5, 3, 8
TOKENS = GRID**2
BATCHES = 800


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[MaskedBatch]:
    dataset = write_codes(tmp_path_factory.mktemp("codes"), grid=GRID, bits=BITS, classes=CLASSES)
    stream = MaskedBatches(
        dataset,
        4,
        stage="generator",
        seed=0,
        label_dropout=0.1,
        input_flip=0.0,
    )
    return [stream.batch(step) for step in range(BATCHES)]


def within(observed: int, share: float, count: int) -> bool:
    """Whether a count is within 4.5 standard deviations of its share."""
    return abs(observed - share * count) < 4.5 * math.sqrt(count * share * (1 - share))


def test_each_batch_masks_one_number_of_tokens_that_follows_the_cosine(batches: list[MaskedBatch]) -> None:
    seen = Counter(batch.masked.shape[1] for batch in batches)
    expected = Counter(max(1, math.floor(TOKENS * math.cos(math.pi / 2 * u / TOKENS))) for u in range(TOKENS))
    assert seen.keys() == expected.keys()
    for count, times in expected.items():
        assert within(seen[count], times / TOKENS, BATCHES), count


def test_masked_positions_are_drawn_for_each_image_alike_for_every_token(batches: list[MaskedBatch]) -> None:
    single = [batch.masked[:, 0] for batch in batches]  # the first of an image's masked positions is any of them
    positions = Counter(torch.cat(single).tolist())
    assert all(within(positions[token], 1 / TOKENS, 4 * BATCHES) for token in range(TOKENS))
    assert within(sum(int(first[0] == first[1]) for first in single), 1 / TOKENS, BATCHES)
    assert all(len(set(row)) == len(row) for batch in batches[:50] for row in batch.masked.tolist())


def test_the_share_of_labels_that_are_dropped_is_the_settings(batches: list[MaskedBatch]) -> None:
    labels = torch.cat([batch.labels for batch in batches])
    assert within(int((labels == CLASSES).sum()), 0.1, len(labels))


def test_a_share_of_visible_bits_is_flipped_and_of_masked_ones_none(tmp_path: Path) -> None:
    dataset = write_codes(tmp_path, grid=GRID, bits=BITS, classes=CLASSES)
    options: dict[str, Any] = {"stage": "generator", "seed": 0, "label_dropout": 0.1}
    clean, flipped = (MaskedBatches(dataset, 4, input_flip=share, **options) for share in (0.0, 0.3))
    flips = visible = 0
    for step in range(40):
        before, after = clean.batch(step), flipped.batch(step)
        assert torch.equal(before.labels, after.labels) and torch.equal(before.masked, after.masked)
        changed = before.codes != after.codes
        assert not torch.take_along_dim(changed, after.masked.unsqueeze(-1), dim=1).any()
        flips, visible = flips + int(changed.sum()), visible + 4 * (TOKENS - after.masked.shape[1]) * BITS
    assert within(flips, 0.3, visible)


@pytest.mark.parametrize("drawn", [0, 1, 3])
def test_each_pass_over_the_data_shows_the_next_draw_of_the_bits(tmp_path: Path, drawn: int) -> None:
    """One after the other, of every image; the thresholded bits only where none are drawn; from any step on."""
    images, passes = 10, 7  # no multiple of the batch: some batches span two passes
    dataset = write_codes(tmp_path, grid=GRID, bits=BITS, classes=CLASSES, images=images, drawn=drawn)
    every = torch.stack([dataset.batch(torch.arange(images), 0, draw)[0] for draw in range(1 + drawn)])
    options: dict[str, Any] = {"stage": "generator", "seed": 0, "label_dropout": 0.1, "input_flip": 0.0}

    def stream() -> MaskedBatches:
        return MaskedBatches(dataset, 4, **options)

    steps = list(itertools.islice(stream().from_step(0), 18))
    shown = torch.cat([batch.codes for batch in steps]).bool()
    order = torch.cat([stream().indices(step) for step in range(18)])
    for place, image in enumerate(order[: passes * images].tolist()):
        expected = 1 + place // images % drawn if drawn else 0
        assert torch.equal(shown[place], every[expected, image]), place
    later = next(stream().from_step(11))
    assert torch.equal(later.codes, steps[11].codes)


def test_a_validation_sees_bits_as_training_does_the_same_at_every_call(tmp_path: Path) -> None:
    for drawn in (0, 2):
        dataset = write_codes(tmp_path / str(drawn), grid=GRID, bits=BITS, classes=CLASSES, images=8, drawn=drawn)
        fixed = FixedMasks(dataset, 8, 0, torch.device("cpu"), None)
        seen = torch.cat([batch.codes for batch in fixed.batches]).bool()
        assert torch.equal(seen, dataset.batch(torch.arange(8), 0, min(drawn, 1))[0])


def wbce(logits: Tensor, target: Tensor) -> float:
    """One token's loss, bit by bit: ((1−ρ)y + ρ(1−y) + 1/K)·CE, averaged over bits; ρ is the share of ones."""
    y, bits = target.tolist(), len(target)
    rho, total = sum(y) / bits, 0.0
    for one, logit in zip(y, logits.tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        cross_entropy = -(one * math.log(p) + (1 - one) * math.log(1 - p))
        total += ((1 - rho) * one + rho * (1 - one) + 1 / bits) * cross_entropy
    return total / bits


@pytest.mark.parametrize("target", ["flip", "x0", "direct"])
@pytest.mark.parametrize("noise_draws", [1, 3])
@torch.no_grad()
def test_the_loss_is_that_of_the_masked_tokens_each_at_a_step_of_its_own(target: str, noise_draws: int) -> None:
    torch.manual_seed(0)
    model = BiGR(BiGRConfig(BITS, GRID, CLASSES, 16, 1, 1, 16, 1, dropout=0.0, diffusion_steps=STEPS, target=target))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    codes, labels = (torch.rand(2, TOKENS, BITS) < 0.5).float(), torch.tensor([1, CLASSES])
    masked = torch.tensor([[0, 7, 9], [15, 2, 3]])
    loss = model.loss(codes, labels, masked, torch.Generator().manual_seed(1), noise_draws)

    draws, mask = torch.Generator().manual_seed(1), torch.zeros(2, TOKENS, dtype=torch.bool)
    for image, positions in enumerate(masked.tolist()):
        mask[image, positions] = True
    hidden = model.hidden(codes, labels, mask)
    rows = [(image, token) for image, tokens in enumerate(masked.tolist()) for token in tokens] * noise_draws
    steps = torch.randint(1, STEPS + 1, (len(rows),), generator=draws)  # uniform in 1..T, of each token its own
    uniform = torch.rand(len(rows), BITS, generator=draws)
    losses = []
    for (image, token), t, u in zip(rows, steps, uniform, strict=True):
        x0, h = codes[image, token], hidden[image, token][None]
        if target == "direct":
            losses.append(wbce(model.transcoder.direct_logits(h)[0], x0))
            continue
        k = (STEPS - int(t)) / STEPS
        xt = (u < k * x0 + (1 - k) / 2).float()  # q(xₜ=1 | x₀) = kₜx₀ + bₜ
        y = (x0 != xt).float() if target == "flip" else x0
        losses.append(wbce(model.transcoder(xt[None], t[None], h)[0], y))
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_the_bits_of_masked_tokens_are_hidden() -> None:
    torch.manual_seed(0)
    model = BiGR(BiGRConfig(BITS, GRID, CLASSES, 16, 1, 1, 16, 1, dropout=0.0, diffusion_steps=STEPS))
    codes, mask = (torch.rand(1, TOKENS, BITS) < 0.5).float(), torch.zeros(1, TOKENS, dtype=torch.bool)
    mask[0, [3, 8]] = True
    others = torch.where(mask.unsqueeze(-1), 1 - codes, codes)
    with torch.no_grad():
        assert torch.equal(model.hidden(codes, torch.tensor([1]), mask), model.hidden(others, torch.tensor([1]), mask))
