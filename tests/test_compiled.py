"""torch.compile of the blocks: where it is used, and that it changes neither names, nor copies, nor results."""

import copy
from functools import partial

import pytest
import torch

from bigr.models.masked import compiled
from bigr.models.masked.compiled import compile_blocks, compiles
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.runtime.seeds import generator
from bigr.sampling.unmask import Sampling, sample_codes

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
WIDE = compiled.COMPILED_WIDTH


@pytest.mark.parametrize(
    ("setting", "device", "width", "missing", "expected"),
    [
        ("auto", CUDA, WIDE, "", True),
        ("off", CUDA, WIDE, "", False),
        ("auto", CPU, WIDE, "", False),
        ("auto", CUDA, WIDE - 1, "", False),
        ("auto", CUDA, WIDE, "triton", False),
        ("auto", CUDA, WIDE, "gcc", False),
    ],
)
def test_auto_compiles_wide_models_on_gpus_that_can(
    monkeypatch: pytest.MonkeyPatch, setting: str, device: torch.device, width: int, missing: str, expected: bool
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiled, "find_spec", lambda name: None if name == missing else object())
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/gcc" if name == "gcc" != missing else None)
    assert compiles(setting, device, width) == expected


def test_compiled_blocks_compute_the_same_in_one_piece_for_any_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._dynamo.utils as dynamo

    monkeypatch.setattr(compiled, "compiles", lambda *_: True)
    # In place of Inductor, which takes minutes; `fullgraph` raises where a block cannot be compiled as a whole.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    torch.manual_seed(0)
    model = BiGR(BiGRConfig(4, 3, 3, 32, 2, 2, 16, 2, ffn_multiple_of=32, dropout=0.0))
    plain, names = copy.deepcopy(model), list(model.state_dict())
    codes, labels = torch.rand(2, 9, 4, generator=generator(0, "codes")).round(), torch.tensor([0, 1])
    torch._dynamo.reset()
    dynamo.counters.clear()

    assert compile_blocks(model, "auto", CPU)
    assert list(model.state_dict()) == names
    assert not any(part._compiled_call_impl for part in copy.deepcopy(model).modules())
    for count in (3, 5, 7, 9):
        masked = torch.arange(count).expand(2, -1)
        losses = [each.loss(codes, labels, masked, generator(0, "noise")) for each in (model, plain)]
        losses[0].backward()
        assert torch.equal(*losses)
    assert dynamo.counters["stats"]["unique_graphs"] == 3  # of each kind of block
    for batch in (1, 2):
        sampled = [
            sample_codes(each.eval(), labels[:batch], Sampling(4, 3, guidance_scale=2.0), [0, 1][:batch])
            for each in (model, plain)
        ]
        assert torch.equal(*sampled)
    assert dynamo.counters["stats"]["unique_graphs"] <= 3 * 3  # without gradients once more; other batches, once
