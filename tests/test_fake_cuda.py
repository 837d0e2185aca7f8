"""What runs on a GPU is not refused by CUDA's autocast, keeps to one device, and does not wait: shown without a GPU.

tests/fake_cuda.py says what this can show. Whole stages run under bfloat16, as the recipes do, then the calls of the
library and the served model.
"""

import base64
import importlib
import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import bigr
from bigr.data.texts import Texts
from bigr.evaluation.captions.caption_retrieval import similarities
from bigr.evaluation.captions.trained_judge import train_judge
from bigr.evaluation.fidelity.classifier import Classifier, ClassifierConfig, train_classifier
from bigr.evaluation.imagesets.image_stream import ImageStream
from bigr.evaluation.representation.features import token_averages, write_features
from bigr.evaluation.representation.folder_probe import probe_folder
from bigr.evaluation.representation.linear_probe import linear_probe
from bigr.evaluation.zero_shot import ZeroShot
from bigr.imaging.model import ImageModel
from bigr.imaging.options import Editing
from bigr.imaging.sampler import Sampler
from bigr.interop.folders import load_model
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.runtime.context import Context
from bigr.runtime.device import resolve_device
from bigr.runtime.errors import BigrError
from bigr.runtime.precision import autocast
from bigr.runtime.transfer import to_device
from bigr.sampling import unmask
from bigr.sampling.acceleration import accelerate
from bigr.sampling.unmask import Sampling, sample_codes
from bigr.stages import draw_samples, encode_codes, evaluate_model, train_generator, train_tokenizer, train_transcoder
from tests.fake_cuda import CUDA, READS, NotRecordable, Waits, fake_cuda, places
from tests.worlds import features_of, lpips_weights, settings, write_codes, write_models, write_shards, write_text_rows

TOKENS = 16
UNKNOWN = {"sampling/unmask.py sample_codes": TOKENS, "sampling/editing.py inpaint_codes": TOKENS}
"""What the sampler reads: how many tokens are unknown."""

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, about what a FakeTensor has not

ADVERSARIAL: dict[str, Any] = {
    "shards__image_size": 32,
    "tokenizer__channel_multipliers": [1, 1],
    "tokenizer__attention_resolutions": [16],
    "tokenizer__batch_size": 4,
    "tokenizer__steps": 3,
    "tokenizer__perceptual_weight": 1.0,
    "tokenizer__perceptual_weights": "lpips.safetensors",
    "tokenizer__gan_weight": 1.0,
    "tokenizer__gan_start": 2,
    "tokenizer__gan_base_channels": 4,
    "run__workers": 1,
}


def on_gpu(**changes: Any) -> Any:
    return settings(**{"run__device": "cuda", "run__precision": "bfloat16"} | changes)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with untrained models for images of 8×8 pixels and 4×4 tokens."""
    root = tmp_path_factory.mktemp("models")
    write_models(root)
    return root


def networks(root: Path) -> tuple[Tokenizer, BiGR]:
    """Both models on the GPU."""
    models = load_model(root / "models" / "tokenizer", Tokenizer), load_model(root / "models" / "bigr", BiGR)
    return models[0].to(CUDA), models[1].to(CUDA)


@pytest.mark.parametrize("quantizer", ["bernoulli", "lfq"])
def test_the_tokenizer_trains(tmp_path: Path, quantizer: str) -> None:
    write_shards(tmp_path)
    save_file(lpips_weights(), tmp_path / "lpips.safetensors")
    with fake_cuda() as gpu:
        train_tokenizer.run(on_gpu(**ADVERSARIAL, tokenizer__quantizer=quantizer), Context(tmp_path))
    assert (tmp_path / "models" / "tokenizer" / "model.safetensors").is_file()
    assert gpu.reads["training/loop.py Losses.read"] == 2  # a checkpoint, the end


@pytest.mark.parametrize("draws", [0, 2])
def test_images_are_encoded(tmp_path: Path, draws: int) -> None:
    write_shards(tmp_path, size=8)
    write_models(tmp_path)
    chosen = on_gpu(codes__draws=draws, shards__image_size=8, tokenizer__attention_resolutions=[])
    with fake_cuda():
        encode_codes.run(chosen, Context(tmp_path))
    assert (tmp_path / "data" / "codes" / "index.json").is_file()


@pytest.mark.parametrize("target", ["flip", "x0", "direct", "mask"])
def test_generator_and_transcoder_train(tmp_path: Path, target: str) -> None:
    write_codes(tmp_path, images=4)
    start = "joint" if target == "flip" else "scratch"
    changes = {"generator__target": target, "transcoder__target": target, "transcoder__start": start}
    chosen = on_gpu(**changes, generator__dropout=0.1, generator__steps=3, transcoder__steps=2)
    with fake_cuda() as gpu:
        train_generator.run(chosen, Context(tmp_path))
        assert gpu.reads["training/loop.py Losses.read"] == 2  # a checkpoint, the end
        train_transcoder.run(chosen, Context(tmp_path))
    assert (tmp_path / "models" / "bigr" / "model.safetensors").is_file()


TEXTS: dict[str, Any] = {"generator__text_layers": 1, "generator__text_heads": 2, "generator__text_dropout": 0.5}


@pytest.mark.parametrize("kind", ["learned", "frozen"])
def test_a_model_of_texts_trains_and_samples(tmp_path: Path, kind: str) -> None:
    write_codes(tmp_path, images=4)
    write_text_rows(tmp_path, kind, images=4)
    chosen = on_gpu(**TEXTS, generator__dropout=0.1, generator__steps=3, transcoder__steps=2)
    with fake_cuda() as gpu:
        train_generator.run(chosen, Context(tmp_path))
        assert gpu.reads["training/loop.py Losses.read"] == 2  # a checkpoint, the end: texts do not wait
        train_transcoder.run(chosen, Context(tmp_path))
    with fake_cuda(UNKNOWN) as gpu:
        model = load_model(tmp_path / "models" / "bigr", BiGR).to(CUDA)
        texts = Texts.open(tmp_path / "data" / "text", "train", 4)
        assert texts is not None
        given = to_device(texts.batch(torch.arange(4)), CUDA)
        assert (given.dtype, given.device) == (torch.int64 if kind == "learned" else torch.float32, CUDA)
        with autocast(CUDA, "bfloat16", model.config.dim):
            for sampling in (Sampling(2, 2), Sampling(2, 2, guidance_scale=3.0, guidance_schedule="cosine")):
                gpu.reads.clear()
                found = sample_codes(model, given, sampling, [1, 2, 3, 4])
                assert (found.shape, found.device) == ((4, TOKENS, 24), CUDA)
                assert gpu.reads == {"sampling/unmask.py sample_codes": 1}


def test_the_judge_of_captions_trains_without_waiting_and_judges() -> None:
    images = torch.zeros(12, 3, 8, 8, dtype=torch.uint8)
    stream = ImageStream(12, lambda: iter(images))
    texts = [f"caption {number}" for number in range(12)]
    with fake_cuda() as gpu:
        judge = train_judge(settings(evaluation__judge_steps=3).evaluation, stream, texts, CUDA)
        assert not gpu.reads  # the training does not wait
        assert next(judge.parameters()).device == CUDA
        assert similarities(judge, stream, texts, 4).shape == (12, 10)


def test_a_killed_training_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_codes(tmp_path, images=4)
    chosen, context = on_gpu(generator__steps=3, run__precision="float32"), Context(tmp_path, "f")
    with fake_cuda({"training/checkpoints.py Checkpoint.save": 0}) as gpu:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(train_generator, "save", interrupted)
            train_generator.run(chosen, context)
        assert not gpu.reads["training/checkpoints.py Checkpoint.resume"]
        train_generator.run(chosen, context)
        assert gpu.reads["training/checkpoints.py Checkpoint.resume"]
    assert (tmp_path / "models" / "generator" / "model.safetensors").is_file()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_stage_samples_draws(project: Path) -> None:
    with fake_cuda(UNKNOWN):
        draw_samples.run(on_gpu(samples__count=6, samples__batch_size=4), Context(project))
    assert np.load(project / "outputs" / "samples.npz")["arr_0"].shape == (6, 8, 8, 3)


GUIDANCE: list[dict[str, Any]] = [
    {},
    {"guidance_scale": 2.0},
    {"guidance_scale": 2.0, "guidance_schedule": "linear", "temperature": 2.0},
]
NOISE: list[dict[str, Any]] = [
    {"deterministic_bits": True},
    *({"gumbel_temperature": 0.5, "gumbel_schedule": schedule} for schedule in ("constant", "up", "down")),
]


@pytest.mark.parametrize("order", ["entropy", "margin", "random", "raster"])
def test_every_order_and_schedule_samples_and_waits_once(project: Path, order: str) -> None:
    with fake_cuda(UNKNOWN) as gpu:
        _, model = networks(project)
        labels = torch.zeros(2, dtype=torch.long, device=CUDA)
        noises = NOISE if order in ("entropy", "margin") else NOISE[:1]  # the others heed no temperature
        for way in ({**guided, **noisy} for guided in GUIDANCE for noisy in noises):
            gpu.reads.clear()
            with autocast(CUDA, "auto", model.config.dim):
                found = sample_codes(model, labels, Sampling(2, 2, order=order, **way), [1, 2])
            assert (found.shape, found.dtype, found.device) == ((2, TOKENS, 6), torch.bool, CUDA), way
            assert gpu.reads == {"sampling/unmask.py sample_codes": 1}, way


@pytest.mark.parametrize("target", ["x0", "direct", "mask"])
def test_every_target_samples(tmp_path: Path, target: str) -> None:
    write_models(tmp_path, target=target)
    with fake_cuda(UNKNOWN):
        _, model = networks(tmp_path)
        labels = torch.zeros(2, dtype=torch.long, device=CUDA)
        with autocast(CUDA, "auto", model.config.dim):
            for scale in (1.0, 2.0):
                sample_codes(model, labels, Sampling(2, 3, guidance_scale=scale), [1, 2])


def sample_with_graphs(folder: Path, target: str, times: int = 3) -> tuple[int, int]:
    """Sample several times with guidance; how many graphs were recorded, and how often one was replayed."""
    write_models(folder, target=target)
    with fake_cuda(UNKNOWN) as gpu:
        _, model = networks(folder)
        accelerate(model, "auto", CUDA)
        labels = torch.zeros(2, dtype=torch.long, device=CUDA)
        for _ in range(times):
            with autocast(CUDA, "auto", model.config.dim):
                found = sample_codes(model, labels, Sampling(2, 2, guidance_scale=2.0), [1, 2])
            assert (found.shape, found.dtype) == ((2, TOKENS, 6), torch.bool)
        return gpu.recorded, gpu.replayed


@pytest.mark.parametrize("target", ["flip", "direct", "mask"])
def test_iterations_are_recorded_once_and_replayed(tmp_path: Path, target: str) -> None:
    assert sample_with_graphs(tmp_path, target) == (2, 4)  # two iterations: the first call is direct, two are replays


NOT_RECORDABLE: dict[str, Callable[[Tensor], object]] = {
    "between the devices": lambda p: torch.zeros(1).pin_memory().to(p.device, non_blocking=True),
    "a draw": lambda p: torch.rand(1, generator=torch.Generator(device=p.device), device=p.device),
}


@pytest.mark.parametrize("what", NOT_RECORDABLE)
def test_what_a_graph_would_not_repeat_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    original = unmask.bit_probabilities

    def computed(*args: Any, **kwargs: Any) -> Tensor:
        probability = original(*args, **kwargs)
        NOT_RECORDABLE[what](probability)
        return probability

    monkeypatch.setattr(unmask, "bit_probabilities", computed)
    with pytest.raises(NotRecordable, match=what):
        sample_with_graphs(tmp_path, "flip", times=2)


def test_a_weight_that_autocast_forgets_before_a_replay_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear = torch.clear_autocast_cache
    inside = "sampling/graphs.py CudaRecorder.__call__"
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: inside in dict(places()) or clear())
    with pytest.raises(NotRecordable, match="gone"):
        sample_with_graphs(tmp_path, "flip")


def picture(size: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def mask(size: int = 12) -> np.ndarray:
    found = np.zeros((size, size), dtype=bool)
    found[size // 2 :] = True
    return found


CALLS: dict[str, Callable[[bigr.ImageModel, dict[str, Any]], Any]] = {
    "generate": lambda model, how: model.generate([0, 1], **how),
    "inpaint": lambda model, how: model.inpaint(picture(), mask(), **how),
    "outpaint": lambda model, how: model.outpaint(picture(), margins=2, **how),
    "edit": lambda model, how: model.edit(picture(), mask(), 1, **how),
    "interpolate": lambda model, how: model.interpolate(0, 1, steps=2, **how),
    "enrich": lambda model, how: model.enrich(picture(4), label=1, **how),
    "reconstruct": lambda model, how: model.reconstruct(picture()),
    "features": lambda model, how: model.features([picture()]),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_application_runs(project: Path, call: str) -> None:
    seen: list[object] = []
    how = {
        "iterations": 2,
        "diffusion_steps": 2,
        "guidance_scale": 2.0,
        "on_step": lambda frame: seen.extend(frame.pictures),
    }
    known = {**UNKNOWN, "sampling/editing.py inpaint_codes": 8}
    with fake_cuda(known):
        CALLS[call](bigr.load(project, device="cuda"), how)
    assert bool(seen) == (call not in ("reconstruct", "features"))


def test_the_served_model_answers(project: Path) -> None:
    from bigr.tracking.registry.served import Served

    plain = {"iterations": 2, "diffusion_steps": 2, "guidance_scale": 2.0, "gumbel_temperature": 0.1}
    config = {"samples": plain, "seed": 0, "precision": "auto", "batch_size": 2, "use_labels": True, "max_images": 8}
    config["classes"] = ["a", "b", "c"]
    paths = {name: str(project / "models" / name) for name in ("tokenizer", "bigr")}
    with fake_cuda(UNKNOWN):
        served = Served()
        served.load_context(SimpleNamespace(artifacts=paths, model_config=config))  # type: ignore[arg-type]
        answers = served.predict(None, {"labels": np.array([0, 1, 2])})  # type: ignore[arg-type]
    assert [Image.open(io.BytesIO(base64.b64decode(answer))).size for answer in answers] == [(8, 8)] * 3


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])) for _ in range(count)]


def test_the_classifier_trains_without_waiting_and_measures(project: Path) -> None:
    with fake_cuda() as gpu:
        found = train_classifier(
            iter(batches(3)), ClassifierConfig(8, 3, 4, 8), steps=3, learning_rate=0.01, device=CUDA
        )
        assert not gpu.reads
        assert found.predict(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).device.type == "cpu"


def test_features_are_taken_and_stored(tmp_path: Path, project: Path) -> None:
    with fake_cuda():
        _, model = networks(project)
        chosen = [(torch.zeros(4, TOKENS, 6, dtype=torch.bool), torch.zeros(4, dtype=torch.long))]
        features = write_features(tmp_path / "features.npy", token_averages(model, chosen), 4)
    assert (len(features), features.layers, features.width) == (4, 2, 32)


def test_zero_shot_metrics_are_measured(project: Path) -> None:
    sampling, editing = Sampling(2, 2, gumbel_temperature=0.2), Editing(2.0, 0.0, 0.5, 2.0, 1)
    with fake_cuda(UNKNOWN):
        classifier = Classifier(ClassifierConfig(8, 3, 4, 8)).eval().to(CUDA)
        drawing = ImageModel(Sampler(*networks(project), 4, nullcontext), sampling, editing, ["a", "b", "c"])
        measured = ZeroShot(drawing, classifier, batch_size=4)
        images = ImageStream(4, lambda: iter(torch.zeros(4, 3, 8, 8, dtype=torch.uint8)))
        every = measured.applications(images, torch.arange(4) % 3, torch.zeros(3, 8, 8))
        metrics = {name: value for application in every.values() for name, value in application().items()}
    assert len(every) == 4 and {"inpaint_psnr", "edit_label_agreement"} <= metrics.keys()


def test_the_stage_evaluation_measures_every_part(tmp_path: Path) -> None:
    write_shards(tmp_path, size=8, classes=3)
    write_models(tmp_path)
    chosen = {"shards__image_size": 8, "tokenizer__attention_resolutions": [], "evaluation__zero_shot_images": 2}
    for stage in (encode_codes, draw_samples):
        stage.run(settings(**chosen, samples__count=12), Context(tmp_path))
    with fake_cuda(UNKNOWN):
        evaluate_model.run(on_gpu(**chosen), Context(tmp_path))
    parts = json.loads((tmp_path / "outputs" / "evaluation-parts.json").read_text())
    assert (parts["failed"], parts["left_out"]) == ({}, {})
    assert {"classifier", "fidelity", "psnr", "representation", "zero_shot.enrichment"} <= set(parts["measured"])


def test_the_linear_probe_trains_without_waiting() -> None:
    draws = torch.Generator().manual_seed(0)
    split = features_of(torch.rand(8, 2, 4, generator=draws), torch.arange(8) % 2)
    with fake_cuda() as gpu:
        held_out = torch.tensor([0, 1])
        rates = {"epochs": 2, "batch_size": 3, "learning_rate": 0.1, "weight_decay": 0.0}
        linear_probe(split, split, held_out=held_out, classes=2, device=CUDA, **rates)  # type: ignore[arg-type]
        assert set(gpu.reads) == {"evaluation/representation/linear_probe.py _accuracies"}


def test_a_labelled_folder_is_probed(tmp_path: Path) -> None:
    write_shards(tmp_path, size=8)
    write_models(tmp_path)
    models = tmp_path / "models"
    with fake_cuda():
        probe_folder(str(tmp_path / "pictures"), models / "tokenizer", models / "bigr", tmp_path / "out", on_gpu())
    assert (tmp_path / "out" / "metrics.json").is_file()


# That this would notice a mistake is shown by mistakes: each is noticed.


def test_the_precision_is_that_of_a_gpu() -> None:
    with fake_cuda(), autocast(CUDA, "auto", 1):
        weight = torch.zeros(4, 4, device=CUDA)
        assert F.linear(weight, weight).dtype == torch.bfloat16
        assert weight.softmax(0).dtype == torch.float32


def test_an_operation_that_autocast_refuses_is_noticed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmask, "bit_entropy", lambda p: F.binary_cross_entropy(p, p, reduction="none").mean(-1))
    with pytest.raises(RuntimeError, match="unsafe to autocast"):
        test_every_order_and_schedule_samples_and_waits_once(project, "entropy")


def test_a_gpu_that_would_emulate_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda():
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
        weight = torch.zeros(4, 4, device=CUDA)
        with autocast(CUDA, "auto", 1):
            assert F.linear(weight, weight).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "rank", "remedy"), [("cuda", "1", "run.processes to 1 at most"), ("cuda:3", "0", "set it to cuda or cpu")]
)
def test_a_gpu_that_is_not_there_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, name: str, rank: str, remedy: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    with fake_cuda(), pytest.raises(BigrError, match=f"run.device is {name}, .*{remedy}"):
        resolve_device(name)


def test_float32_is_not_tf32() -> None:
    with fake_cuda(), torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        resolve_device("cuda")
        assert not torch.backends.cudnn.allow_tf32


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "unsafe to autocast": lambda loss: F.binary_cross_entropy(loss.sigmoid(), loss.detach().sigmoid()),
    "deterministic": lambda loss: loss[None].cumsum(0).sum(),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_an_operation_that_is_refused_in_a_step_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    original = BiGR.loss
    monkeypatch.setattr(BiGR, "loss", lambda self, *batch: REFUSED[reason](original(self, *batch)))
    write_codes(tmp_path, images=4)
    chosen = on_gpu(generator__validate_every=100)
    with fake_cuda(), pytest.raises(RuntimeError, match=reason):
        train_generator.run(chosen, Context(tmp_path))


WAITING: dict[str, Callable[[Tensor], object]] = {
    "item": lambda loss: loss.item(),
    "float": lambda loss: float(loss),
    "bool": lambda loss: bool(loss > 0),
    "cpu": lambda loss: loss.cpu(),
    "numpy": lambda loss: loss.to("cpu").numpy(),
    "tolist": lambda loss: loss[None].tolist(),
    "nonzero": lambda loss: loss[None].nonzero(),
    "a mask": lambda loss: loss[None][loss[None] > 0],
    "a list as an index": lambda loss: loss[None][[0]],
    "a new tensor": lambda loss: torch.tensor([1.0], device=loss.device),
    "a copy from the CPU": lambda loss: torch.zeros(1).to(loss.device, non_blocking=True),
    "a copy into the CPU": lambda loss: torch.zeros(1).copy_(loss[None]),
}


@pytest.mark.parametrize("wait", WAITING)
def test_a_wait_in_a_step_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: str) -> None:
    original = BiGR.loss

    def waiting(self: BiGR, *batch: Any) -> Tensor:
        loss = original(self, *batch)
        WAITING[wait](loss)
        return loss

    monkeypatch.setattr(BiGR, "loss", waiting)
    write_codes(tmp_path, images=4)
    with fake_cuda(), pytest.raises(Waits, match="learn"):
        train_generator.run(on_gpu(), Context(tmp_path))


def test_a_tensor_of_the_wrong_device_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = BiGR.loss
    monkeypatch.setattr(BiGR, "loss", lambda self, *batch: original(self, *batch) * torch.ones(2).mean()[None])
    write_codes(tmp_path, images=4)
    with fake_cuda(), pytest.raises(RuntimeError, match="same device"):
        train_generator.run(on_gpu(), Context(tmp_path))


def test_a_generator_of_the_wrong_device_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = train_generator.generator
    monkeypatch.setattr(train_generator, "generator", lambda *place, device: original(*place))
    write_codes(tmp_path, images=4)
    with fake_cuda(), pytest.raises(RuntimeError, match="a generator on cpu for draws on cuda"):
        train_generator.run(on_gpu(), Context(tmp_path))


def test_every_place_that_may_wait_is_there() -> None:
    for place in READS:
        path, name = place.split(" ")
        module = importlib.import_module("bigr." + path.removesuffix(".py").replace("/", "."))
        found: Any = module
        for part in name.partition(".<locals>")[0].split("."):
            found = getattr(found, part)
        assert callable(found), place


def test_torch_is_left_as_it_was() -> None:
    generator_class, to = torch.Generator, nn.Module.to
    with fake_cuda():
        assert torch.cuda.is_available() and torch.Generator is not generator_class
    assert (torch.Generator, nn.Module.to) == (generator_class, to)
    assert not torch.are_deterministic_algorithms_enabled()
