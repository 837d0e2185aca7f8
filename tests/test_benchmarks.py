"""benchmarks/: what is compared is the same sampler, and what is counted is what was executed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import compare, published, report
from benchmarks.machine import Machine
from benchmarks.parts import flops
from benchmarks.subjects import ROOT, Subject
from bigr import config
from bigr.runtime.seeds import generator
from bigr.sampling.reverse import bit_probabilities
from bigr.sampling.unmask import sample_codes
from tests import tiny

CPU = torch.device("cpu")
MACHINE = Machine("a machine", 1, "AVX2", "float32", 0.1, "2", "3")


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """The tiny model, guided."""
    params = tmp_path / "params.yaml"
    params.write_bytes((ROOT / "params.yaml").read_bytes())
    tiny.apply(params)
    found = Subject.of("digits", CPU, config.load(params))
    found.sampling = replace(found.sampling, guidance_scale=2.0, iterations=3, diffusion_steps=4)
    found.model.eval()
    return found


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_published_reverse_process_gives_the_same_bit_probabilities(subject: Subject, scale: float) -> None:
    model, how = subject.model, subject.sampling
    draws = generator(1, "test")
    tokens, width = 5, model.config.dim
    h, u = (torch.randn(tokens, width, generator=draws) for _ in range(2))
    noise = torch.rand(how.steps(0), tokens, model.config.code_bits, generator=draws)
    rows = iter(noise)
    theirs = published.bit_probabilities(model, h, u if scale != 1 else None, how, 0, scale, lambda shape: next(rows))
    options = {"guidance_scale": scale, "temperature": how.temperature}
    ours = bit_probabilities(model.transcoder, h, noise, hidden_unconditional=u if scale != 1 else None, **options)
    assert next(rows, None) is None
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert ours.std() > 0.01  # with modulations of zero every model would agree


def test_the_published_training_loss_is_the_same_objective(subject: Subject) -> None:
    codes, labels, masked = subject.training_batch(32)
    step = published.TrainingStep(subject.model, 0.001, 0.99, 1.0)
    with torch.no_grad():
        theirs = [float(step.loss(codes, labels, masked, generator(i, "a"))) for i in range(20)]
        ours = [float(subject.model.loss(codes, labels, masked, generator(i, "b"))) for i in range(20)]
    spread = torch.tensor(ours).std() + torch.tensor(theirs).std()
    assert abs(sum(theirs) - sum(ours)) / 20 < spread


def test_every_token_of_the_published_sampler_is_fixed_once(subject: Subject) -> None:
    sharp = replace(subject.sampling, deterministic_bits=False)
    subject.model.transcoder.final_layer.linear.bias.data.fill_(0.0)
    codes = published.sample_codes(subject.model, subject.labels(4), sharp, generator(0, "test"))
    assert codes.shape == (4, subject.settings.grid**2, subject.model.config.code_bits)
    assert 0.3 < codes.float().mean() < 0.7
    assert codes.any(-1).float().mean() > 0.9  # zeros would be tokens that were never drawn


def test_a_preset_is_compared_with_the_published_settings(subject: Subject) -> None:
    subject.published = replace(subject.sampling, iterations=4, diffusion_steps=8)
    result = compare.sampling(subject, 2, 1, torch.float32)
    assert result.flops[compare.PUBLISHED]["backbone"] == result.flops[compare.OURS]["backbone"] * 4 / 3
    assert result.settings.endswith("published: n = 4, S = 8")


@pytest.mark.parametrize("target", ["mask", "direct"])
def test_another_target_is_compared_with_the_published_one_of_as_many_weights(subject: Subject, target: str) -> None:
    other = Subject.of("digits", CPU, subject.settings, target)
    other.sampling, other.published = replace(subject.sampling, diffusion_steps=2), subject.sampling
    theirs = other.published_model
    assert theirs.config == subject.model.config and other.model.config.target == target
    assert all(map(torch.equal, theirs.state_dict().values(), other.model.state_dict().values()))
    assert {p.data_ptr() for p in theirs.parameters()} == {p.data_ptr() for p in other.model.parameters()}
    result = compare.sampling(other, 2, 1, torch.float32)
    assert result.settings.startswith(f"target {target}, n = 3, S = 2") and result.ratio
    plain = compare.sampling(subject, 2, 1, torch.float32)
    assert result.flops[compare.PUBLISHED] == plain.flops[compare.PUBLISHED]
    assert result.flops[compare.OURS]["transcoder"] < plain.flops[compare.OURS]["transcoder"]
    assert compare.training(other, 2, 1, torch.float32).ratio


def test_flops_by_part_are_those_of_the_whole(subject: Subject) -> None:
    result = compare.sampling(subject, 2, 1, torch.float32)
    labels, seeds = subject.labels(2), [0, 1]
    networks = sum(count for part, count in result.flops[compare.OURS].items() if part != "decoder")
    assert networks == flops(lambda: sample_codes(subject.model, labels, subject.sampling, seeds))
    assert result.flops[compare.PUBLISHED]["transcoder"] > 1.2 * result.flops[compare.OURS]["transcoder"]
    assert result.flops[compare.PUBLISHED]["backbone"] == result.flops[compare.OURS]["backbone"]


def test_the_report_has_every_rate_part_and_ratio(subject: Subject, tmp_path: Path) -> None:
    results = [measure(subject, 2, 2, torch.float32) for measure in (compare.sampling, compare.training)]
    report.write(tmp_path, MACHINE, results)
    written = json.loads((tmp_path / "benchmarks.json").read_text())
    assert written["machine"]["tflops"] == 0.1
    for result, found in zip(results, written["results"], strict=True):
        assert found["ratio"] == result.rate(compare.OURS) / result.rate(compare.PUBLISHED)
        assert len(found["seconds"][compare.OURS]) == 2
    text = "\n".join(report.lines(MACHINE, results))
    for name in ("backbone", "transcoder", "decoder", "draws", "rest", "forward", "backward", "optimiser", "EMA"):
        assert f"  {name}" in text
    assert (tmp_path / "benchmarks.png").stat().st_size > 1000
