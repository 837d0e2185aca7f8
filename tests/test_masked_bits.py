"""The target "mask": its loss, and samples that are distributed as a literal transcription says."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bigr.models.masked.transcoder import Transcoder, TranscoderConfig
from bigr.sampling.bit_unmasking import bit_counts, unmasked_bits
from tests import test_exactness as exactness
from tests.literal_masked_bits import LiteralMaskedBits

CASES: dict[str, dict[str, Any]] = {
    "masked bits": {"diffusion_steps": 2, "bit_noise": 0.5, "guidance_scale": 2.0},
    "masked bits one by one": {"diffusion_steps": 3, "bit_counts": (1, 1, 1), "bit_noise": 1.0, "known": True},
    "masked bits, thresholded": {"diffusion_steps": 2, "deterministic_bits": True, "bit_noise": 1.0, "temperature": 2},
}


@pytest.fixture(autouse=True)
def cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases beside those of tests/test_exactness.py, with fewer samples."""
    for name, values in CASES.items():
        monkeypatch.setitem(exactness.CASES, name, {"target": "mask", **values})
    monkeypatch.setattr(exactness, "SAMPLES", 4_000)


@pytest.mark.parametrize("case", CASES)
def test_samples_are_distributed_as_the_transcription_says(case: str) -> None:
    theirs = exactness.transcribed(case, LiteralMaskedBits)
    assert exactness.differences(case, exactness.sampled(case), theirs) == {}


class NoNoise(LiteralMaskedBits):
    def bit_noise(self, step: int) -> float:
        return 0.0


class NoiseInTheFirstStepAlone(LiteralMaskedBits):
    def bit_noise(self, step: int) -> float:
        return self.how.bit_noise if step == 0 else 0.0


class CertaintyOfOnes(LiteralMaskedBits):
    def certainty_of_bit(self, p: Tensor, drawn: Tensor) -> Tensor:
        return torch.log(p)


class AlwaysTheLastLevel(LiteralMaskedBits):
    def time(self, share: float) -> float:
        return self.T - 1


class EntropyAtTheEnd(LiteralMaskedBits):
    def decided(self, p_at_decision: Tensor, p: Tensor) -> Tensor:
        return p


MISTAKES = [NoNoise, NoiseInTheFirstStepAlone, CertaintyOfOnes, AlwaysTheLastLevel, EntropyAtTheEnd]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_sampler_with_a_mistake_is_rejected(mistake: type[LiteralMaskedBits]) -> None:
    case = "masked bits one by one"
    assert exactness.differences(case, exactness.sampled(case), exactness.transcribed(case, mistake))


@pytest.mark.parametrize("noise_draws", [1, 3])
@torch.no_grad()
def test_the_loss_is_that_of_random_absent_bits_and_a_tenth_of_the_known(noise_draws: int) -> None:
    torch.manual_seed(0)
    tokens, bits, steps = 40, 5, 8
    transcoder = Transcoder(TranscoderConfig(bits, 6, 16, 1, steps, "mask"))
    for parameter in transcoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x0, h = (torch.rand(tokens, bits) < 0.5).float(), torch.randn(tokens, 6)
    losses = transcoder.loss(x0, h, torch.Generator().manual_seed(1), noise_draws)

    draws, rows, seen = torch.Generator().manual_seed(1), tokens * noise_draws, set()
    normal = torch.randn(rows, generator=draws).tolist()
    order = torch.rand(rows, bits, generator=draws).tolist()
    for row in range(rows):
        share = min(max(1 - 1 / (1 + math.exp(-0.8 * normal[row])), 1 / bits), 1)
        count = round(bits * share)
        absent = sorted(range(bits), key=order[row].__getitem__)[:count]
        token, expected = row % tokens, 0.0
        x = torch.tensor([0.0 if k in absent else 2 * x0[token, k] - 1 for k in range(bits)])
        time = transcoder.t_embedder(torch.tensor([steps * count / bits - 1]))
        logits = transcoder.denoise((x[None] + 1) / 2, transcoder.c_embedder(h[token][None]) + time)[0]
        for k in range(bits):
            p = torch.sigmoid(logits[k] if x0[token, k] else -logits[k]).item()
            expected -= (1.0 if k in absent else 0.1) * math.log(p) / bits
        assert losses[row].item() == pytest.approx(expected, rel=1e-4)
        seen.add(count)
    assert seen >= {1, 2, 3, 4} and len(losses) == rows


def test_of_one_bit_always_one_is_absent() -> None:
    transcoder = Transcoder(TranscoderConfig(1, 4, 8, 1, 4, "mask"))
    xt, level = transcoder.corrupted(torch.ones(50, 1), torch.Generator().manual_seed(0))
    assert (xt == 0.5).all() and (level == 0).all()


def test_counts_of_bits_grow_and_add_up_whatever_the_number_of_steps() -> None:
    assert bit_counts(16, 4) == (2, 2, 5, 7) and bit_counts(16, 1) == (16,)
    for bits in (1, 2, 6, 16, 24, 32):
        for steps in range(1, bits + 1):
            counts = bit_counts(bits, steps)
            assert len(counts) == steps and sum(counts) == bits
            assert counts[0] >= 1 and list(counts) == sorted(counts)


def test_training_learns_bits_that_hang_on_each_other() -> None:
    """Two codewords of 6 bits: all are known once one is."""
    torch.manual_seed(0)
    transcoder, word = Transcoder(TranscoderConfig(6, 2, 32, 1, 16, "mask", 0.1)), torch.tensor([1.0, 0, 0, 1, 1, 0])
    optimiser, draws = torch.optim.AdamW(transcoder.parameters(), lr=0.01), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(100):
        x0 = torch.where(torch.rand(64, 1, generator=draws) < 0.5, word, 1 - word)
        loss = transcoder.loss(x0, torch.ones(64, 2), draws, 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    found, _ = unmasked_bits(transcoder, torch.ones(400, 2), torch.rand(12, 400, 6, generator=draws), (1,) * 6)
    ones = (found == word.bool()).float().mean(1)
    assert ((ones == 0) | (ones == 1)).float().mean() > 0.95  # whole codewords
