"""Entropy-ordered sampling: the schedule, what stays, and what a sample depends on."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bigr.models.masked.backbone import Backbone
from bigr.models.masked.diffusion import BernoulliDiffusion
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.models.masked.transcoder import Transcoder, TranscoderConfig
from bigr.runtime.errors import BigrError
from bigr.sampling.inputs import check_finite
from bigr.sampling.reverse import bit_probabilities
from bigr.sampling.unmask import Sampling, certainty, guidance, sample_codes, still_masked

TOKENS, BITS, CLASSES = 16, 6, 3


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = BiGR(BiGRConfig(BITS, 4, CLASSES, 32, 2, 2, 32, 1, ffn_multiple_of=32, diffusion_steps=16)).eval()
    for parameter in model.parameters():  # the zeros of the initialisation would hide what depends on what
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def draw(model, labels=(0, 1, 2, 0, 1), seeds=(1, 2, 3, 4, 5), sampling=None, **given):
    sampling = sampling or Sampling(iterations=4, diffusion_steps=5, guidance_scale=2.0, gumbel_temperature=0.5)
    return sample_codes(model, torch.tensor(labels), sampling, list(seeds), **given)


def test_each_iteration_leaves_the_schedules_number_of_tokens_masked(model):
    left = []
    draw(model, on_iteration=lambda done: left.append(done.masked.sum(1).tolist()))
    expected = [math.floor(TOKENS * math.cos(math.pi / 2 * (i + 1) / 4)) for i in range(4)]
    assert left == [[count] * 5 for count in expected]
    assert left[-1] == [0] * 5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_has_diverged_is_one_clear_error_before_anything_is_drawn(model, value):
    check_finite(model)
    diverged = copy.deepcopy(model)
    next(diverged.transcoder.parameters()).data.view(-1)[3] = value
    with pytest.raises(BigrError, match="not finite"):
        check_finite(diverged)


def test_known_tokens_keep_their_bits_and_the_schedule_counts_the_unknown(model):
    torch.manual_seed(1)
    codes = torch.rand(5, TOKENS, BITS) < 0.5
    unknown = torch.zeros(5, TOKENS, dtype=torch.bool)
    unknown[:, 3:9] = True
    unknown[1, 9:12] = True  # images of one batch may have different numbers of unknown tokens
    unknown[2] = False
    left = []
    result = draw(
        model, codes=codes, unknown=unknown, on_iteration=lambda done: left.append(done.masked.sum(1).tolist())
    )
    assert torch.equal(result[~unknown], codes[~unknown])
    assert (result[unknown] != codes[unknown]).any()
    assert left[0] == [still_masked(n, 0.25) for n in (6, 9, 0, 6, 6)]
    assert left[-1] == [0] * 5


def test_a_sample_does_not_depend_on_its_batch(model):
    together = draw(model)
    alone = torch.cat(
        [draw(model, labels=(label,), seeds=(seed,)) for label, seed in zip((0, 1, 2, 0, 1), range(1, 6), strict=True)]
    )
    assert torch.equal(together, alone)


def test_a_sample_depends_on_its_seed_and_its_label(model):
    first = draw(model, labels=(0, 0), seeds=(1, 2))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(draw(model, labels=(1, 1), seeds=(1, 2)), first)
    assert torch.equal(draw(model, labels=(0, 0), seeds=(1, 2)), first)


def test_unguided_sampling_never_runs_the_unconditional_model(model, monkeypatch):
    sizes = []
    forward = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, c, *rest: sizes.append(len(c)) or forward(self, c, *rest))
    draw(model, sampling=Sampling(iterations=4, diffusion_steps=3, guidance_scale=1.0))
    assert sizes == [5] * 4
    sizes.clear()
    draw(model, sampling=Sampling(iterations=4, diffusion_steps=3, guidance_scale=1.5))
    assert sizes == [10] * 4


def test_an_iteration_that_would_fix_nothing_costs_nothing(model, monkeypatch):
    calls = []
    forward = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, *rest: calls.append(1) or forward(self, *rest))
    draw(model, sampling=Sampling(iterations=16, diffusion_steps=2))
    counts = [TOKENS] + [still_masked(TOKENS, (i + 1) / 16) for i in range(16)]
    assert len(calls) == sum(a != b for a, b in pairwise(counts)) < 16


def test_raster_order_fixes_tokens_in_reading_order(model):
    masks = []
    sampling = Sampling(iterations=4, diffusion_steps=2, order="raster")
    draw(model, sampling=sampling, on_iteration=lambda done: masks.append(done.masked))
    for masked in masks:
        fixed = (~masked[0]).sum()
        assert (~masked[:, :fixed]).all()
        assert masked[:, fixed:].all()


def test_certainty_is_minus_entropy_in_bits_or_the_margin():
    probability = torch.tensor([[[0.5, 0.5], [0.9, 0.2], [1.0, 0.0]]])
    positions, none = torch.arange(3)[None], torch.zeros(1, 3)
    plain = Sampling(4, 4)
    entropy = certainty(probability, positions, none, plain, 0.5)
    h = lambda p: -p * math.log2(p) - (1 - p) * math.log2(1 - p)  # noqa: E731
    assert entropy[0].tolist() == pytest.approx([-1.0, -(h(0.9) + h(0.2)) / 2, 0.0], abs=1e-6)
    margin = certainty(probability, positions, none, Sampling(4, 4, order="margin"), 0.5)
    assert margin[0].tolist() == pytest.approx([0.0, 0.7, 1.0])


@pytest.mark.parametrize(("schedule", "factor"), [("constant", 1.0), ("up", 0.25), ("down", 0.75)])
def test_gumbel_noise_follows_its_schedule(schedule, factor):
    probability = torch.full((1, 2, 4), 0.5)
    gumbel = torch.tensor([[1.0, -2.0]])
    sampling = Sampling(4, 4, gumbel_temperature=0.5, gumbel_schedule=schedule)
    noisy = certainty(probability, torch.arange(2)[None], gumbel, sampling, 0.25)
    assert noisy[0].tolist() == pytest.approx([-1 + 0.5 * factor, -1 - 2 * 0.5 * factor])


@pytest.mark.parametrize("steps", [8, 16, 50, 256])
def test_as_many_sampling_steps_as_noise_levels_visit_each_once(steps):
    assert BernoulliDiffusion(steps).reverse_steps(steps) == list(range(steps, 0, -1))


def test_fewer_sampling_steps_are_spread_from_the_last_noise_level_to_the_first():
    assert BernoulliDiffusion(16).reverse_steps(5) == [16, 12, 8, 4, 1]
    hundred = [math.floor(i / 99 * 255 + 1e-9) + 1 for i in range(100)]
    assert BernoulliDiffusion(256).reverse_steps(100) == hundred[::-1]


class NothingRead(TorchDispatchMode):
    """Within it, no operation may need the values of a tensor on the host, for which a GPU would be waited for."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket._qualified_op_name.removeprefix("aten::") not in self.WAITING, f"{func} waits"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("target", ["flip", "x0", "direct"])
@pytest.mark.parametrize("guided", [True, False])
def test_no_diffusion_step_waits_for_the_device(target, guided):
    torch.manual_seed(0)
    for device in ("cpu", "meta"):  # tensors on meta have no values that could be read
        transcoder = Transcoder(TranscoderConfig(BITS, 32, 32, 1, diffusion_steps=16, target=target)).to(device)
        hidden, noise = torch.randn(3, 32, device=device), torch.rand(5, 3, BITS, device=device)
        unconditional = torch.randn(3, 32, device=device) if guided else None
        with NothingRead():
            found = bit_probabilities(
                transcoder, hidden, noise, hidden_unconditional=unconditional, guidance_scale=2.0, temperature=0.9
            )
        assert found.shape == (3, BITS)


@pytest.mark.parametrize("order", ["entropy", "margin", "random", "raster"])
def test_the_device_is_looked_at_once_in_sampling(model, order, monkeypatch):
    looks = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: looks.append(1) or tolist(self))
    with NothingRead():
        draw(model, sampling=Sampling(4, 5, order=order, guidance_scale=2.0, gumbel_temperature=0.5))
    assert len(looks) == 1


def test_posterior_is_the_same_for_a_step_of_all_tokens_and_for_one_of_each():
    torch.manual_seed(0)
    diffusion, x0, xt = BernoulliDiffusion(16), torch.rand(5, BITS), (torch.rand(5, BITS) < 0.5).float()
    for t, s in ((16, 9), (9, 1), (1, 0)):
        one = diffusion.posterior(x0, xt, torch.tensor(t), torch.tensor(s))
        each = diffusion.posterior(x0, xt, torch.full((5,), t), torch.full((5,), s))
        assert torch.equal(one, each)
    assert torch.equal(one, x0)


def test_linear_guidance_rises_from_one_to_its_scale():
    sampling = Sampling(4, 4, guidance_scale=3.0, guidance_schedule="linear")
    assert [guidance(sampling, ratio) for ratio in (0.0, 0.5, 1.0)] == [1.0, 2.0, 3.0]


def test_deterministic_bits_are_thresholded(model):
    sampling = Sampling(iterations=1, diffusion_steps=4, deterministic_bits=True)
    seen = []
    import bigr.sampling.unmask as unmask

    original = unmask.bit_probabilities

    def spy(*args, **kwargs):
        seen.append(original(*args, **kwargs))
        return seen[-1]

    unmask.bit_probabilities = spy
    try:
        codes = draw(model, labels=(0,), seeds=(1,), sampling=sampling)
    finally:
        unmask.bit_probabilities = original
    assert torch.equal(codes[0], seen[0] > 0.5)
    assert not torch.equal(codes, draw(model, labels=(0,), seeds=(1,), sampling=Sampling(1, 4)))
