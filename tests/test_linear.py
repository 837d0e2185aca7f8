"""bigr/models/linear.py: oneDNN computes wide layers in float32, and everything else is torch's own."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published import plain_linear
from bigr.models import linear
from bigr.models.linear import Linear

needs_onednn = pytest.mark.skipif(not linear.ONEDNN, reason="this machine's torch computes without oneDNN")


def wide(bias: bool = True) -> Linear:
    """A layer of 1024 inputs and 1536 outputs."""
    torch.manual_seed(0)
    return Linear(1024, 1536, bias=bias)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("expanded", [True, False])
def test_results_and_gradients_are_those_of_torch(bias: bool, expanded: bool) -> None:
    layer = wide(bias)
    x = torch.randn(1, 1024).expand(2, 3, -1) if expanded else torch.randn(2, 3, 1024)
    x.requires_grad_()
    leaves = [x, *layer.parameters()]
    ours, own = layer(x), nn.Linear.forward(layer, x)
    assert not torch.equal(ours, own)  # else it would not be oneDNN that computed
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-5)
    for found, expected in zip(
        torch.autograd.grad(ours.sum(), leaves), torch.autograd.grad(own.sum(), leaves), strict=True
    ):  # the gradient of a sum is an expanded tensor
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@needs_onednn
def test_a_row_does_not_depend_on_how_many_others_there_are() -> None:
    layer, x = wide(), torch.randn(50, 1024)
    with torch.no_grad():
        together = layer(x)
        assert all(torch.equal(layer(x[:rows]), together[:rows]) for rows in (1, 2, 7, 33))


@needs_onednn
def test_flops_are_counted_as_of_any_product() -> None:
    counts = []
    for forward in (Linear.forward, nn.Linear.forward):
        layer = wide()
        with FlopCounterMode(display=False) as counter:
            forward(layer, torch.randn(4, 1024, requires_grad=True)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts == [3 * 2 * 4 * 1024 * 1536] * 2


def test_everything_else_is_computed_by_torch_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, narrow, x = wide(), Linear(64, 32), torch.randn(3, 1024)
    own = nn.Linear.forward(layer, x)
    assert torch.equal(narrow(x[:, :64]), nn.Linear.forward(narrow, x[:, :64]))
    assert torch.equal(layer(x[0]), nn.Linear.forward(layer, x[0]))
    assert layer(x[:0]).shape == (0, 1536)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), nn.Linear.forward(layer, x))
    with monkeypatch.context() as patched:
        patched.setattr(torch.backends.mkldnn, "enabled", False)
        assert torch.equal(layer(x), own)
    with plain_linear():
        assert torch.equal(layer(x), own)
    assert wide().double()(x.double()).dtype == torch.float64
    monkeypatch.setattr(linear, "ONEDNN", False)
    assert torch.equal(layer(x), own)


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError, None])
def test_a_function_that_is_missing_or_wrong_is_not_used(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None
) -> None:
    def broken(x: torch.Tensor, weight: torch.Tensor, bias: object = None) -> torch.Tensor:
        if error is None:
            return x @ weight.t() + 1
        raise error("another version of torch")

    monkeypatch.setattr(linear, "onednn", broken)
    assert not linear._works()
