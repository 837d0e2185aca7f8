"""Orders and schedules (of guidance, of diffusion steps) that are not in the paper: exact, and what they save."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from bigr.sampling import unmask
from bigr.sampling.halton import halton_places
from bigr.sampling.unmask import Sampling, guidance, sample_codes
from tests import test_exactness as exactness
from tests.literal_sampler import Literal

CASES: dict[str, dict[str, Any]] = {
    "halton order": {"order": "halton", "guidance_scale": 2.0},
    "halton order, known tokens": {"order": "halton", "known": True},
    "cosine guidance": {"guidance_scale": 3.0, "guidance_schedule": "cosine", "guidance_power": 2.0},
    "late guidance": {"guidance_scale": 3.0, "guidance_start": 0.34},
    "late guidance that rises": {"guidance_scale": 3.0, "guidance_start": 0.34, "guidance_schedule": "linear"},
    "fewer diffusion steps at the end": {"guidance_scale": 2.0, "diffusion_steps": (8, 2)},
    "more diffusion steps at the end": {"diffusion_steps": (2, 7), "known": True},
}


@pytest.fixture(autouse=True)
def cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases beside those of tests/test_exactness.py."""
    for name, values in CASES.items():
        monkeypatch.setitem(exactness.CASES, name, values)


@pytest.mark.parametrize("case", CASES)
def test_samples_are_distributed_as_the_transcription_says(case: str) -> None:
    assert exactness.differences(case, exactness.sampled(case), exactness.transcribed(case)) == {}


class ReadingOrder(Literal):
    def halton_order(self) -> list[int]:
        return list(range(exactness.TOKENS))


class PowerOfTheScale(Literal):
    """½(1 − cos πr)ᵖ instead of ½(1 − cos πrᵖ)."""

    def scale(self, i: int) -> float:
        s, p = self.how.guidance_scale, self.how.guidance_power
        return 1 + (s - 1) * (0.5 * (1 - math.cos(math.pi * self.ratio(i)))) ** (1 / p)


class GuidedFromTheStart(Literal):
    def scale(self, i: int) -> float:
        return self.how.guidance_scale


class GuidedOneLater(Literal):
    def scale(self, i: int) -> float:
        return super().scale(i - 1)


class FirstNumberThroughout(Literal):
    def count(self, i: int) -> int:
        return super().count(0)


class StepsOneBehind(Literal):
    def count(self, i: int) -> int:
        return super().count(max(0, i - 1))


@pytest.mark.parametrize(
    ("case", "mistake"),
    [
        ("halton order", ReadingOrder),
        ("cosine guidance", PowerOfTheScale),
        ("late guidance", GuidedFromTheStart),
        ("late guidance", GuidedOneLater),
        ("fewer diffusion steps at the end", FirstNumberThroughout),
        ("fewer diffusion steps at the end", StepsOneBehind),
    ],
)
def test_a_sampler_with_a_mistake_is_rejected(case: str, mistake: type[Literal]) -> None:
    assert exactness.differences(case, exactness.sampled(case), exactness.transcribed(case, mistake))


@pytest.mark.parametrize("grid", [1, 2, 7, 16, 32])
def test_halton_places_are_a_permutation_that_spreads_tokens(grid: int) -> None:
    places = halton_places(grid * grid)
    assert sorted(places) == list(range(grid * grid))
    first = [divmod(token, grid) for token, place in enumerate(places) if place < grid]
    if grid > 2:
        quadrants = {(row * 2 // grid, column * 2 // grid) for row, column in first}
        assert quadrants == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_tokens_are_fixed_in_halton_order_whatever_the_bits() -> None:
    model, order = exactness.model("flip"), Literal(exactness.model("flip"), Sampling(1, 2), 0).halton_order()
    fixed: list[int] = []
    sampling = Sampling(4, 4, order="halton", gumbel_temperature=5.0)
    sample_codes(
        model,
        torch.tensor([1]),
        sampling,
        [0],
        on_iteration=lambda done: fixed.extend(
            t for t in (~done.masked[0]).nonzero().flatten().tolist() if t not in fixed
        ),
    )
    assert fixed == order


def test_guidance_starts_after_its_share_of_the_iterations() -> None:
    late = Sampling(10, 4, guidance_scale=3.0, guidance_start=0.3)
    assert [guidance(late, (i + 1) / 10) for i in range(10)] == [1.0] * 3 + [3.0] * 7
    rising = replace(late, guidance_schedule="linear")
    assert [guidance(rising, (i + 1) / 10) for i in (2, 3, 9)] == pytest.approx([1.0, 1.8, 3.0])


def test_cosine_guidance_rises_from_one_to_its_scale_and_later_with_a_larger_power() -> None:
    early, late = (Sampling(8, 4, guidance_scale=3.0, guidance_schedule="cosine", guidance_power=p) for p in (1.0, 4.0))
    ratios = [(i + 1) / 8 for i in range(8)]
    scales = [guidance(early, ratio) for ratio in ratios]
    assert scales == sorted(scales) and scales[-1] == pytest.approx(3.0) and scales[3] == pytest.approx(2.0)
    assert all(guidance(late, ratio) < guidance(early, ratio) for ratio in ratios[:-1])


def test_an_iteration_without_guidance_runs_the_networks_once() -> None:
    model, rows = exactness.model("flip"), []
    hook = model.backbone.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    try:
        sample_codes(model, torch.tensor([1]), Sampling(4, 4, guidance_scale=2.0, guidance_start=0.5), [0])
    finally:
        hook.remove()
    assert rows == [1, 1, 2, 2]


def test_diffusion_steps_go_from_the_first_number_to_the_last() -> None:
    assert [Sampling(5, (30, 4)).steps(i) for i in range(5)] == [30, 24, 17, 10, 4]  # 23.5 and 10.5: halves to even
    assert [Sampling(3, (2, 8)).steps(i) for i in range(3)] == [2, 5, 8]
    assert Sampling(1, (30, 4)).steps(0) == 30


@pytest.mark.parametrize("steps", [4, (4, 4), (6, 2)])
def test_an_iteration_draws_and_denoises_as_often_as_it_has_steps(
    steps: int | tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, denoised, drawn = exactness.model("flip"), [], []
    denoise, draw = model.transcoder.denoise, unmask.draw_noise
    monkeypatch.setattr(model.transcoder, "denoise", lambda xt, c: denoised.append(len(xt)) or denoise(xt, c))
    monkeypatch.setattr(unmask, "draw_noise", lambda *shape: drawn.append(shape[1]) or draw(*shape))
    codes = sample_codes(model, torch.tensor([1]), Sampling(3, steps, order="raster"), [0])
    expected = [6, 4, 2] if steps == (6, 2) else [4, 4, 4]
    tokens = [4, 3, 2]  # masked before each iteration
    assert drawn == expected
    assert denoised == [m for m, count in zip(tokens, expected, strict=True) for _ in range(count)]
    same = sample_codes(model, torch.tensor([1]), Sampling(3, 4, order="raster"), [0])
    assert torch.equal(codes, same) == (steps != (6, 2))
