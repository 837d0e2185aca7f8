"""The target "mask": its loss, and samples that are distributed as a literal transcription says."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import bigr
from bigr.imaging.frames import Frame
from bigr.models.masked.transcoder import Transcoder, TranscoderConfig
from bigr.runtime.context import Context
from bigr.runtime.errors import BigrError
from bigr.sampling.bit_unmasking import bit_counts, unmasked_bits
from bigr.sampling.unmask import Sampling, transcode
from bigr.stages import train_generator, train_transcoder
from bigr.training.masked_batches import MaskedBatches
from tests import test_exactness as exactness
from tests.literal_masked_bits import LiteralMaskedBits
from tests.worlds import settings, write_codes, write_models

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


@pytest.mark.parametrize(("noise_draws", "absent_std"), [(1, 0.8), (3, 2.5)])
@torch.no_grad()
def test_the_loss_is_that_of_random_absent_bits_and_a_tenth_of_the_known(noise_draws: int, absent_std: float) -> None:
    torch.manual_seed(0)
    tokens, bits, steps = 40, 5, 8
    transcoder = Transcoder(TranscoderConfig(bits, 6, 16, 1, steps, "mask"))
    transcoder.absent_std = absent_std
    for parameter in transcoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x0, h = (torch.rand(tokens, bits) < 0.5).float(), torch.randn(tokens, 6)
    losses = transcoder.loss(x0, h, torch.Generator().manual_seed(1), noise_draws)

    draws, rows, seen = torch.Generator().manual_seed(1), tokens * noise_draws, set()
    normal = torch.randn(rows, generator=draws).tolist()
    order = torch.rand(rows, bits, generator=draws).tolist()
    for row in range(rows):
        share = min(max(1 - 1 / (1 + math.exp(-absent_std * normal[row])), 1 / bits), 1)
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


def test_counts_that_are_chosen_hold_for_as_many_steps() -> None:
    assert bit_counts(16, 2, (6, 10)) == (6, 10)
    assert bit_counts(16, 3, (6, 10)) == bit_counts(16, 3)


def test_an_image_model_edits_and_its_images_do_not_depend_on_each_other(tmp_path: Path) -> None:
    write_models(tmp_path, target="mask")
    model = bigr.load(tmp_path)
    assert model.limits()["diffusion_steps"] == (1, 6) and model.sampling.diffusion_steps == 6  # of the paper's 100
    model.sampling = replace(model.sampling, diffusion_steps=2, bit_counts=(1, 5), iterations=3)
    frames: list[Frame] = []
    pair = model.generate([0, 1], seed=3, on_step=frames.append)
    assert all((entropy >= 0).any() and np.nanmax(entropy) <= 1 for frame in frames for entropy in frame.entropies)
    again = model.generate([0, 1], seed=3, diffusion_steps=2)
    assert [image.tobytes() for image in again] == [image.tobytes() for image in pair]  # the model's own counts
    assert model.generate(0, seed=3)[0].tobytes() == pair[0].tobytes()
    (painted,) = model.inpaint(pair[0], np.pad(np.ones((4, 8), bool), ((4, 0), (0, 0))), seed=1, diffusion_steps=1)
    assert np.array_equal(np.asarray(painted)[:2], np.asarray(pair[0])[:2])
    with pytest.raises(BigrError, match="diffusion_steps must be a whole number from 1 to 6, got 7"):
        model.generate(0, diffusion_steps=7)
    model.save_pretrained(tmp_path / "saved")
    assert bigr.load(tmp_path / "saved", params=None).generate(0, seed=3)[0].tobytes() == pair[0].tobytes()


@pytest.mark.parametrize("guided", [True, False])
def test_no_step_waits_for_the_device(guided: bool) -> None:
    transcoder = Transcoder(TranscoderConfig(6, 8, 16, 1, 8, "mask")).to("meta")  # where no value can be read
    hidden, noise = torch.randn(3, 8, device="meta"), torch.rand(6, 3, 6, device="meta")
    sampling = Sampling(2, 3, bit_noise=2.5)
    bits, probability = transcode(transcoder, hidden, hidden if guided else None, noise, noise[0], sampling, 2.0)
    assert bits.shape == probability.shape == (3, 6)
    assert transcoder.loss(torch.rand(3, 6, device="meta"), hidden, torch.Generator()).shape == (3,)


def test_training_learns_bits_that_hang_on_each_other() -> None:
    """Two codewords of 6 bits, equally likely: their bits are coins, and all are known once one is."""
    torch.manual_seed(0)
    transcoder, word = Transcoder(TranscoderConfig(6, 2, 32, 1, 16, "mask", 0.1)), torch.tensor([1.0, 0, 0, 1, 1, 0])
    transcoder.absent_std = 2.5  # all bits absent often enough
    optimiser, draws = torch.optim.AdamW(transcoder.parameters(), lr=0.01), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(80):
        x0 = torch.where(torch.rand(64, 1, generator=draws) < 0.5, word, 1 - word)
        loss = transcoder.loss(x0, torch.ones(64, 2), draws, 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    noise = torch.rand(12, 400, 6, generator=draws)
    found, _ = unmasked_bits(transcoder, torch.ones(400, 2), noise, (1,) * 6, bit_noise=1e6)
    ones = (found == word.bool()).float().mean(1)
    assert ((ones == 0) | (ones == 1)).float().mean() > 0.95  # whole codewords
    assert 0.35 < ones.mean() < 0.65  # of both kinds
    found, _ = unmasked_bits(transcoder, torch.ones(400, 2), noise, (1,) * 6)
    ones = (found == word.bool()).float().mean(1)
    assert not 0.05 < ones.mean() < 0.95  # without noise the slightly likelier one is chosen nearly always


def test_both_stages_train_with_the_shares_and_the_flips_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_codes(tmp_path, images=4)
    seen: set[tuple[str, float]] = set()
    loss, batch = Transcoder.loss, MaskedBatches.batch
    monkeypatch.setattr(Transcoder, "loss", lambda self, *rest: seen.add(("std", self.absent_std)) or loss(self, *rest))
    monkeypatch.setattr(
        MaskedBatches, "batch", lambda self, step: seen.add(("flip", self.input_flip)) or batch(self, step)
    )
    chosen = settings(
        generator__target="mask",
        generator__absent_std=1.5,
        generator__input_flip=0.1,
        generator__steps=1,
        transcoder__absent_std=2.5,
        transcoder__steps=1,
    )
    for stage, std in ((train_generator, 1.5), (train_transcoder, 2.5)):
        seen.clear()
        stage.run(chosen, Context(tmp_path))
        assert seen == {("std", std), ("flip", 0.1)}
