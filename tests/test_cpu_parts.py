"""Parts of a batch at the same time on a CPU: nothing that is computed changes."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import bigr
from bigr.imaging.similarity import averages_of
from bigr.runtime import cpu_parts
from bigr.runtime.cpu_parts import in_parts
from tests.test_samples import sampled
from tests.worlds import write_models

CPU = torch.device("cpu")
THREADS = 4


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch has four threads, and small batches are in parts too."""
    monkeypatch.setattr(cpu_parts, "_ROWS", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[slice]:
    """The parts that had a thread of their own."""
    parts: list[slice] = []
    run = cpu_parts._Part.run
    monkeypatch.setattr(cpu_parts._Part, "run", lambda self: parts.append(self._places) or run(self))
    return parts


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    write_models(root)
    return root


def whole(work: cpu_parts.Callable[[slice], object], places: range, rows: int, device: torch.device) -> list[object]:
    return [work(slice(places.start, places.stop))]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_samples_are_the_same_in_parts(
    project: Path, monkeypatch: pytest.MonkeyPatch, started: list[slice], precision: str
) -> None:
    parts, _ = sampled(project, run__precision=precision, samples__count=11)
    batches = [(0, 2), (2, 4), (4, 6), (6, 8)], [(0, 1), (1, 2), (2, 3)]  # places in each batch
    assert sorted((part.start, part.stop) for part in started) == sorted(batches[0] + batches[1])
    monkeypatch.setattr("bigr.stages.draw_samples.in_parts", whole)
    assert parts.tobytes() == sampled(project, run__precision=precision, samples__count=11)[0].tobytes()


def test_generated_images_and_features_are_the_same_in_parts(
    project: Path, monkeypatch: pytest.MonkeyPatch, started: list[slice]
) -> None:
    model = bigr.load(project)
    images = model.generate([0, 1], variants=3, seed=1)
    features = model.layer_features(images)
    assert len(started) == 2 * THREADS
    monkeypatch.setattr("bigr.imaging.sampler.in_parts", whole)
    monkeypatch.setattr("bigr.imaging.similarity.in_parts", whole)
    assert [one.tobytes() for one in images] == [one.tobytes() for one in model.generate([0, 1], variants=3, seed=1)]
    torch.testing.assert_close(features, model.layer_features(images))  # up to the rounding of other shapes


def test_features_in_parts_record_no_gradients(project: Path, started: list[slice]) -> None:
    network = bigr.load(project).sampler.network.requires_grad_()
    assert not averages_of(network, torch.zeros(8, 16, 6)).requires_grad and started


def test_a_watched_call_sees_its_whole_batch(project: Path, started: list[slice]) -> None:
    counts: list[int] = []
    bigr.load(project).generate([0, 1], variants=3, on_step=lambda frame: counts.append(len(frame.pictures)))
    assert set(counts) == {6} and not started


def test_parts_share_torchs_threads_and_keep_their_order() -> None:
    found = in_parts(lambda part: (part, torch.get_num_threads(), threading.current_thread().name), range(3, 5), 2, CPU)
    assert [part for part, _, _ in found] == [slice(3, 4), slice(4, 5)]
    assert [count for _, count, _ in found] == [THREADS // 2] * 2
    assert len({name for *_, name in found} | {threading.current_thread().name}) == 3
    assert torch.get_num_threads() == THREADS


def test_a_small_batch_a_gpus_and_one_within_a_part_stay_whole() -> None:
    def one(part: slice) -> slice:
        return part

    cuda = torch.device("cuda")
    assert in_parts(one, range(1), 1000, CPU) == [slice(0, 1)]
    assert in_parts(one, range(8), 1000, cuda) == [slice(0, 8)]
    assert in_parts(lambda part: in_parts(one, range(8), 1000, CPU), range(8), 1000, CPU) == [[slice(0, 8)]] * THREADS


def test_the_number_of_parts_grows_with_the_square_root_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_parts, "_ROWS", 48)
    assert [len(in_parts(lambda part: part, range(n), 16, CPU)) for n in (2, 11, 12, 26, 27, 48, 500)] == [
        1, 1, 2, 2, 3, 4, 4
    ]  # fmt: skip


def endless(part: slice) -> None:
    while True:
        time.sleep(0.001)


def test_an_error_of_a_part_is_raised_and_ends_the_others() -> None:
    def work(part: slice) -> None:
        if part.start == 0:
            raise ValueError("of a part")
        endless(part)

    before = threading.active_count()
    with pytest.raises(ValueError, match="of a part"):
        in_parts(work, range(8), 1000, CPU)
    assert (threading.active_count(), torch.get_num_threads()) == (before, THREADS)
    assert len(in_parts(lambda part: part, range(8), 1000, CPU)) == THREADS


def test_an_interrupt_ends_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    before, handler = threading.active_count(), signal.getsignal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            in_parts(endless, range(8), 1000, CPU)
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert (threading.active_count(), torch.get_num_threads()) == (before, THREADS)
