"""Replayed iterations are those of direct calls: what surrounds a CUDA graph, with recordings that a CPU can replay."""

import gc
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.sampling import graphs
from bigr.sampling.graphs import drop_graphs, use_graphs
from bigr.sampling.unmask import Sampling, sample_codes

CPU = torch.device("cpu")
SAMPLING = Sampling(3, 4, guidance_scale=2.0, guidance_schedule="linear", gumbel_temperature=0.3)
LABELS = torch.tensor([0, 1, 2])


@dataclass
class Recorder:
    """Records by calling: a replay reads the tensors that were read, and writes those that were written."""

    recorded: int = 0
    replayed: int = 0
    weights: list[Tensor] = field(default_factory=list)

    def __call__(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.recorded += 1
        results = work()

        def replay() -> None:
            self.replayed += 1
            for own, new in zip(tree_leaves(results), tree_leaves(work()), strict=True):
                own.copy_(new)

        for own in tree_leaves(results):  # only a replay computes
            own.fill_(0)
        return replay, results


@pytest.fixture
def model() -> BiGR:
    torch.manual_seed(0)
    made = BiGR(BiGRConfig(4, 3, 3, 32, 1, 2, 16, 1, ffn_multiple_of=32)).eval()
    for parameter in made.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5)
    return made


@pytest.fixture
def recorder(model: BiGR) -> Recorder:
    found = Recorder()
    use_graphs(model, CPU, found)
    return found


def direct(model: BiGR, *args: Any, **kwargs: Any) -> Tensor:
    """The codes without graphs, which are dropped."""
    drop_graphs(model)
    return sample_codes(model, *args, **kwargs)


def test_replayed_sampling_equals_direct_sampling_bit_for_bit(model: BiGR, recorder: Recorder) -> None:
    unknown = torch.arange(9).expand(3, 9) % 2 == torch.tensor([[0], [1], [0]])
    known = torch.rand(3, 9, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    calls: list[tuple[int, dict[str, Any]]] = [
        (3, {}),
        (2, {}),  # the last, smaller batch
        (3, {"codes": known, "unknown": unknown}),
        (3, {"condition": torch.randn(3, 32, generator=torch.Generator().manual_seed(2))}),
    ]

    def all_calls(start: int, sample: Callable[..., Tensor]) -> list[Tensor]:
        found = []
        for count, given in calls:
            seen: list[Any] = []
            seeds = range(start, start + count)
            found.append(sample(model, LABELS[:count], SAMPLING, seeds, **given, on_iteration=seen.append))
            found += [part for each in seen for part in (each.codes, each.masked, each.entropy.nan_to_num(-1))]
        return found

    replayed = [all_calls(start, sample_codes) for start in (0, 10, 20)]
    assert (
        recorder.recorded == 3 * 3
    )  # iterations × sizes of batch and of what is unknown; a condition is no other size
    assert recorder.replayed > recorder.recorded
    for start, found in zip((0, 10, 20), replayed, strict=True):
        expected = all_calls(start, lambda *args, **kwargs: direct(*args, **kwargs))
        assert all(map(torch.equal, found, expected))
    assert not torch.equal(replayed[1][0], replayed[2][0])


def test_changed_and_moved_weights_are_never_stale(model: BiGR, recorder: Recorder) -> None:
    for _ in range(3):
        before = sample_codes(model, LABELS, SAMPLING, [0, 1, 2])
    with torch.no_grad():
        model.transcoder.final_layer.linear.bias.add_(3)
    changed = sample_codes(model, LABELS, SAMPLING, [0, 1, 2])
    assert recorder.recorded == SAMPLING.iterations  # read in their place
    model.transcoder.final_layer.linear.bias = torch.nn.Parameter(torch.full((4,), -3.0))
    moved = sample_codes(model, LABELS, SAMPLING, [0, 1, 2])
    assert recorder.recorded == 2 * SAMPLING.iterations
    assert torch.equal(moved, direct(model, LABELS, SAMPLING, [0, 1, 2]))
    assert not torch.equal(before, changed) and not torch.equal(changed, moved)


def test_another_precision_is_recorded_anew(model: BiGR, recorder: Recorder) -> None:
    for _ in range(3):
        sample_codes(model, LABELS, SAMPLING, [0, 1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(3):
            narrow = sample_codes(model, LABELS, SAMPLING, [0, 1, 2])
        assert recorder.recorded == 2 * SAMPLING.iterations
        assert torch.equal(narrow, direct(model, LABELS, SAMPLING, [0, 1, 2]))


def test_the_graphs_used_longest_ago_are_dropped(
    model: BiGR, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MOST", SAMPLING.iterations)
    for count in (3, 3, 2, 2, 3, 3):
        sample_codes(model, LABELS[:count], SAMPLING, range(count))
    assert recorder.recorded == 3 * SAMPLING.iterations


def test_a_failed_recording_is_one_warning_and_calls_stay_direct(model: BiGR, caplog: pytest.LogCaptureFixture) -> None:
    def fails(work: Callable[[], Any]) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    use_graphs(model, CPU, fails)
    with caplog.at_level(logging.WARNING):
        found = [sample_codes(model, LABELS, SAMPLING, [0, 1, 2]) for _ in range(3)]
    (line,) = caplog.messages
    assert "CUDA out of memory" in line and "run.compile" in line
    assert torch.equal(found[0], found[2])


def test_too_little_memory_for_a_graphs_inputs_is_the_same_warning(
    model: BiGR, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(tensor: torch.Tensor, **how: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    first = sample_codes(model, LABELS, SAMPLING, [0, 1, 2])
    monkeypatch.setattr(torch.Tensor, "clone", fails)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(sample_codes(model, LABELS, SAMPLING, [0, 1, 2]), first)
    assert len(caplog.messages) == 1 and recorder.recorded == 0


def test_a_model_in_training_is_called_directly(model: BiGR, recorder: Recorder) -> None:
    model.train()
    for _ in range(3):
        sample_codes(model, LABELS, SAMPLING, [0, 1, 2])
    assert recorder.recorded == 0


def test_a_model_that_is_gone_leaves_nothing_behind(model: BiGR) -> None:
    own = BiGR(model.config).eval()
    use_graphs(own, CPU, lambda work: (lambda: None, work()))
    for _ in range(3):
        sample_codes(own, LABELS, SAMPLING, [0, 1, 2])
    gone = weakref.ref(own)
    del own
    gc.collect()
    assert gone() is None
