"""Both quantizers: bits, gradients, penalties, against small computations made by hand."""

import math

import pytest
import torch
from torch import Tensor

from bigr.models.autoencoder.quantizers import BernoulliQuantizer, LookupFreeQuantizer, make_quantizer
from bigr.models.bits import entropy

BOTH = pytest.mark.parametrize("name", ["bernoulli", "lfq"])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed)).requires_grad_()


def test_parameters_have_the_published_names_and_shapes() -> None:
    state = make_quantizer("bernoulli", embed_dim=8, code_bits=5).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "proj.0.weight": (5, 8, 1, 1),
        "proj.0.bias": (5,),
        "embed.weight": (5, 8),
    }


@BOTH
def test_shapes_lead_from_features_to_bits_and_back(name: str) -> None:
    quantizer = make_quantizer(name, embed_dim=8, code_bits=5)
    logits = quantizer.logits(torch.randn(2, 8, 3, 4))
    bits = quantizer.sample(logits, seeded(0))
    assert logits.shape == quantizer.probabilities(logits).shape == bits.shape == (2, 5, 3, 4)
    assert quantizer.embed_bits(bits).shape == (2, 8, 3, 4)


@BOTH
def test_sampled_bits_are_exactly_zero_or_one(name: str) -> None:
    logits = logits_of(16, 24, 4, 4)
    bits = make_quantizer(name, 8, 24).sample(logits, seeded(0))
    assert set(bits.unique().tolist()) == {0.0, 1.0}


def test_bernoulli_bits_occur_as_often_as_their_probability_says() -> None:
    quantizer = BernoulliQuantizer(8, 3)
    p = torch.tensor([0.05, 0.5, 0.9])
    logits = p.logit().view(1, 3, 1, 1).expand(100_000, 3, 1, 1)
    frequencies = quantizer.sample(logits, seeded(0)).mean(dim=(0, 2, 3))
    assert torch.allclose(frequencies, p, atol=0.006)  # 3.8 standard deviations at p = 1/2


def test_bernoulli_bits_depend_on_the_generator_alone() -> None:
    quantizer, logits = BernoulliQuantizer(8, 5), logits_of(2, 5, 3, 3)
    first = quantizer.sample(logits, seeded(1))
    torch.manual_seed(7)
    assert torch.equal(first, quantizer.sample(logits, seeded(1)))
    assert not torch.equal(first, quantizer.sample(logits, seeded(2)))


def test_straight_through_gradient_is_that_of_the_probability() -> None:
    quantizer, logits = BernoulliQuantizer(8, 5), logits_of(2, 5, 3, 3)
    upstream = torch.randn(2, 5, 3, 3, generator=seeded(3))
    (through_bits,) = torch.autograd.grad((quantizer.sample(logits, seeded(0)) * upstream).sum(), logits)
    p = torch.sigmoid(logits).detach()
    assert torch.allclose(through_bits, upstream * p * (1 - p), atol=1e-7)


def test_bernoulli_embedding_is_the_sum_of_the_rows_of_set_bits() -> None:
    quantizer = BernoulliQuantizer(8, 5)
    bits = torch.randint(2, (2, 5, 3, 3), generator=seeded(0)).bool()
    embedded = quantizer.embed_bits(bits)
    rows = [quantizer.embed.weight[k] for k in range(5) if bits[1, k, 2, 1]]
    assert torch.allclose(embedded[1, :, 2, 1], torch.stack(rows).sum(dim=0), atol=1e-6)


def test_embedded_bits_start_with_a_mean_square_of_one() -> None:
    torch.manual_seed(0)
    quantizer = BernoulliQuantizer(512, 24)
    bits = torch.randint(2, (64, 24, 2, 2), generator=seeded(0))
    assert quantizer.embed_bits(bits).pow(2).mean().item() == pytest.approx(1.0, abs=0.15)


def test_bernoulli_adds_no_penalty() -> None:
    assert make_quantizer("bernoulli", 8, 5).penalties(logits_of(2, 5, 3, 3)) == {}


@BOTH
def test_deterministic_code_is_the_sign_of_the_logit(name: str) -> None:
    quantizer, logits = make_quantizer(name, 8, 5), torch.tensor([-2.0, -1e-3, 0.0, 1e-3, 2.0]).view(1, 5, 1, 1)
    assert (quantizer.probabilities(logits) > 0.5).flatten().tolist() == [False, False, False, True, True]


def test_lfq_draws_nothing_and_its_bits_are_its_deterministic_code() -> None:
    quantizer, logits = LookupFreeQuantizer(8, 5), logits_of(4, 5, 3, 3)
    bits = quantizer.sample(logits, seeded(0))
    assert torch.equal(bits, quantizer.sample(logits, seeded(1)))
    assert torch.equal(bits.bool(), quantizer.probabilities(logits) > 0.5)


def test_lfq_decoder_sees_signs_with_the_gradient_of_the_logits() -> None:
    quantizer, logits = LookupFreeQuantizer(8, 5), logits_of(2, 5, 3, 3)
    embedded = quantizer.embed_bits(quantizer.sample(logits, seeded(0)))
    assert torch.allclose(embedded, quantizer.embed(torch.sign(logits)), atol=1e-6)
    upstream = torch.randn(embedded.shape, generator=seeded(3))
    (gradient,) = torch.autograd.grad((embedded * upstream).sum(), logits)
    weight = quantizer.embed.weight.detach()[:, :, 0, 0]  # [E, K]
    assert torch.allclose(gradient, torch.einsum("behw,ek->bkhw", upstream, weight), atol=1e-5)


def test_lfq_probability_is_the_softmax_of_the_distances_to_both_signs() -> None:
    logits = torch.linspace(-2, 2, 9).view(1, 9, 1, 1)
    distances = torch.stack([(logits - 1) ** 2, (logits + 1) ** 2])
    expected = torch.softmax(-distances / LookupFreeQuantizer.temperature, dim=0)[0]
    assert torch.allclose(LookupFreeQuantizer(8, 9).probabilities(logits), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("logits", "entropy"),
    [
        ([10.0, -10.0], -math.log(2)),  # sure of itself, and as often 1 as 0: the least
        ([10.0, 10.0], 0.0),  # sure, and always the same: a dead bit
        ([0.0, 0.0], 0.0),  # unsure everywhere
    ],
)
def test_lfq_entropy_penalty_rewards_sure_and_balanced_bits(logits: list[float], entropy: float) -> None:
    values = torch.tensor(logits).view(2, 1, 1, 1).expand(2, 4, 3, 3)
    penalty = LookupFreeQuantizer(8, 4).penalties(values)["entropy"]
    assert penalty.item() == pytest.approx(entropy, abs=1e-4)


def test_lfq_penalties_equal_a_computation_bit_by_bit() -> None:
    logits = logits_of(3, 4, 2, 2)
    penalties = LookupFreeQuantizer(8, 4).penalties(logits)

    def entropy(p: float) -> float:
        return -(p * math.log(p) + (1 - p) * math.log(1 - p))

    per_bit = []
    for bit in range(4):
        p = [1 / (1 + math.exp(-4 * v)) for v in logits[:, bit].flatten().tolist()]
        per_bit.append(sum(map(entropy, p)) / len(p) - entropy(sum(p) / len(p)))
    assert penalties["entropy"].item() == pytest.approx(sum(per_bit) / 4, abs=1e-5)
    values = logits.flatten().tolist()
    commitment = sum((abs(v) - 1) ** 2 for v in values) / len(values)
    assert penalties["commitment"].item() == pytest.approx(commitment, abs=1e-5)


def test_lfq_penalties_have_finite_gradients_where_bits_are_certain() -> None:
    logits = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4]).view(1, 5, 1, 1).requires_grad_()
    penalties = LookupFreeQuantizer(8, 5).penalties(logits)
    (penalties["entropy"] + penalties["commitment"]).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_logits_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert make_quantizer("bernoulli", 8, 5).logits(torch.randn(1, 8, 2, 2)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_entropy_of_a_certain_bit_is_zero_and_its_gradient_finite(dtype: torch.dtype) -> None:
    p = torch.tensor([0.0, 0.5, 1.0], dtype=dtype, requires_grad=True)
    found = entropy(p)
    assert found.tolist() == [0.0, 1.0, 0.0]
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    found.sum().backward()
    assert p.grad is not None and p.grad.isfinite().all()
