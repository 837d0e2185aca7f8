"""`bigr plan`: FLOPs equal a count by hand and what runs, memory what is kept; time follows; no data is needed."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from torch import Tensor

from bigr import config
from bigr.cli import program
from bigr.data.texts import write_texts
from bigr.evaluation.fidelity.classifier import Classifier, ClassifierConfig
from bigr.evaluation.imagesets.image_stream import ImageStream
from bigr.evaluation.zero_shot import ZeroShot, measured_model
from bigr.interop.folders import save
from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.models.masked.generator import BiGR, masked_count
from bigr.pipeline.planning import image_counts, meter, networks, plan, sampling_cost, training_cost
from bigr.pipeline.planning.plan_page import page
from bigr.pipeline.stage_table import NAMES
from bigr.runtime.context import Context
from bigr.runtime.errors import BigrError
from bigr.sampling.unmask import Sampling, sample_codes
from bigr.stages import encode_codes as codes_stage
from bigr.text.byte_pairs import BytePairs
from tests import tiny, worlds

ROOT = Path(__file__).parents[1]
FLOAT32 = meter.Arithmetic(gpu=False, bfloat16=False)
LIKE_A_GPU = meter.Arithmetic(gpu=True, bfloat16=True)
VALUES = config.read(ROOT / "params.yaml")
UNLABELLED = {"generator__use_labels": False, "samples__guidance_scale": 1.0}


def settings(**overrides: Any) -> config.Settings:
    """The tiny pipeline's settings, with others in place of some: `generator__dim=64`."""
    values = {name: dict(v) if isinstance(v, dict) else v for name, v in VALUES.items()}
    for key, value in (tiny.OVERRIDES | {k.replace("__", "."): v for k, v in overrides.items()}).items():
        section, name = key.split(".")
        values[section][name] = value
    return config.validate(values)


def write(folder: Path, **overrides: Any) -> Path:
    """A params.yaml of such settings."""
    values = settings(**overrides).model_dump()
    path = folder / "params.yaml"
    YAML(typ="safe").dump(values, path)
    return path


class AllOfOneClass(Classifier):
    """A classifier that computes nothing."""

    def __init__(self) -> None:
        super().__init__(ClassifierConfig(16, 10, 8, 8))

    def predict(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), dtype=torch.long)


def trained(
    settings: config.Settings, stage: str, arithmetic: meter.Arithmetic = FLOAT32, processes: int = 1
) -> training_cost.TrainingCost:
    """The plan of one trained stage."""
    with torch.device("meta"):
        built = networks.build(settings, 10)
        work = getattr(training_cost, f"{stage}_training")(settings, built, arithmetic, processes)
    assert isinstance(work, training_cost.TrainingCost)
    return work


def real_model(settings: config.Settings, classes: int = 10) -> BiGR:
    """The complete model in memory."""
    return BiGR(networks.complete_config(settings, networks.generator_config(settings, classes)))


def backbone_by_hand(c: Any) -> tuple[int, int]:
    """FLOPs of one image forward, and of its token embedding alone, matmul by matmul; 2 for a multiply-add."""
    n, d, k, f = c.grid**2, c.dim, c.code_bits, c.ffn_dim
    length = n + 1  # the condition token
    embedding = 2 * n * k * d
    modulation = 2 * d * 6 * d  # adaLN: once for all blocks
    block = (
        2 * length * d * 3 * d  # wqkv
        + 2 * length * length * d  # queries · keys, over all heads
        + 2 * length * length * d  # attention · values
        + 2 * length * d * d  # wo
        + 3 * 2 * length * d * f  # w1, w3, w2
    )
    return embedding + modulation + c.layers * block, embedding


def denoiser_by_hand(c: Any) -> dict[str, int]:
    """FLOPs of one token through the transcoder's parts."""
    h, k = c.transcoder_dim, c.code_bits
    block = 2 * h * 3 * h + 2 * 2 * h * h  # modulation; the MLP's two linears
    return {
        "bits": 2 * k * h,
        "condition": 2 * c.dim * h,
        "sinusoids": 2 * 256 * h,
        "step": 2 * h * h,
        "denoiser": c.transcoder_blocks * block + 2 * h * 2 * h + 2 * h * k,
    }


def test_recomputed_activations_cost_a_forward_pass_of_the_blocks_and_leave_their_inputs_and_one_block() -> None:
    plain, again = (
        trained(settings(run__activation_checkpointing=on, generator__layers=4), "generator") for on in (False, True)
    )
    config = networks.generator_config(settings(generator__layers=4), 10)
    alone = networks.generator_config(settings(generator__layers=1), 10)
    blocks = backbone_by_hand(config)[0] - backbone_by_hand(alone)[0]
    assert again.parts[0].forward == plain.parts[0].forward
    assert again.parts[0].backward - plain.parts[0].backward == pytest.approx(blocks * 4 / 3)
    deeper = trained(settings(run__activation_checkpointing=True, generator__layers=5), "generator").memory
    inputs = 4 * again.images * (config.tokens + 1) * config.dim
    assert deeper.activations - again.memory.activations == inputs
    assert deeper.activations < plain.memory.activations


@pytest.mark.parametrize("stage", ["tokenizer", "generator", "transcoder"])
def test_a_batch_in_parts_needs_memory_for_one(stage: str) -> None:
    whole, parts = (trained(settings(**{f"{stage}__accumulate": number}), stage) for number in (1, 4))
    assert parts.memory.activations < 0.5 * whole.memory.activations
    assert parts.memory.optimiser == whole.memory.optimiser
    assert parts.parts[0].forward == pytest.approx(whole.parts[0].forward)


def test_flops_of_the_generators_training_equal_a_count_by_hand() -> None:
    s = settings(generator__layers=3, generator__noise_draws=2, generator__ffn_multiple_of=24)
    c, parts = real_model(s).config, {part.name: part for part in trained(s, "generator").parts}
    forward, embedding = backbone_by_hand(c)
    assert parts["backbone"].forward == forward
    assert parts["backbone"].backward == 2 * forward - embedding  # the codes need no gradient

    cost = denoiser_by_hand(c)
    tokens = sum(masked_count(u, 16) for u in range(16)) / 16
    steps = c.diffusion_steps / s.generator.batch_size  # each step's embedding, once for the batch
    forward = tokens * cost["condition"] + 2 * tokens * (cost["bits"] + cost["denoiser"])  # two noise draws
    forward += steps * (cost["sinusoids"] + cost["step"])
    assert parts["transcoder"].forward == pytest.approx(forward)
    backward = 2 * forward - 2 * tokens * cost["bits"] - steps * cost["sinusoids"]
    assert parts["transcoder"].backward == pytest.approx(backward)


def test_flops_of_a_stage_are_those_of_all_its_images() -> None:
    work = trained(settings(generator__steps=7), "generator")
    assert work.flops == pytest.approx(7 * 16 * sum(part.forward + part.backward for part in work.parts))


def test_flops_of_the_tokenizers_encoder_equal_those_of_a_real_pass() -> None:
    s = settings()
    real = Tokenizer(TokenizerConfig.of(s.tokenizer, image_size=16))
    with torch.device("meta"):
        built = networks.build(s, 10)
        planned = meter.flops(lambda: built.tokenizer.codes(torch.zeros(1, 3, 16, 16)))
    assert planned == meter.flops(lambda: real.codes(torch.zeros(1, 3, 16, 16)))
    first = 2 * 16 * 16 * 3 * 3 * 3 * 32  # the first convolution, of 3×3 from 3 to 32 channels
    assert meter.flops(lambda: real.encoder.blocks[0](torch.zeros(1, 3, 16, 16))) == first


@pytest.mark.parametrize(
    ("iterations", "steps", "guidance_scale", "schedule", "target"),
    [
        (1, 2, 1.0, "constant", "flip"),
        (4, 2, 2.5, "constant", "flip"),
        (16, 3, 2.5, "linear", "flip"),  # some of the iterations fix nothing
        (5, 7, 1.5, "constant", "x0"),
        (5, 3, 1.5, "constant", "direct"),
        (5, [1, 4], 1.5, "linear", "mask"),
        (5, [9, 2], 1.5, "linear", "flip"),
    ],
)
def test_flops_of_sampling_equal_those_of_a_sampling_that_runs(
    iterations: int, steps: int | list[int], guidance_scale: float, schedule: str, target: str
) -> None:
    images = 3
    s = settings(
        generator__target=target,
        samples__iterations=iterations,
        samples__diffusion_steps=steps,
        samples__guidance_scale=guidance_scale,
        samples__guidance_schedule=schedule,
        samples__count=24,
        samples__batch_size=images,
    )
    with torch.device("meta"):
        cost = sampling_cost.sampling_cost(s, networks.build(s, 10), FLOAT32, 1)
    model, how = real_model(s).eval(), Sampling.of(s.samples)
    ran = meter.flops(lambda: sample_codes(model, torch.zeros(images, dtype=torch.long), how, list(range(images))))
    assert images * (cost.backbone + cost.transcoder) == pytest.approx(ran, rel=1e-12)


@pytest.mark.parametrize("knows_labels", [True, False])
def test_flops_of_what_needs_no_training_are_those_of_what_the_evaluation_draws(knows_labels: bool) -> None:
    images, s = 16, settings(evaluation__batch_size=8, **({} if knows_labels else UNLABELLED))
    with torch.device("meta"):
        planned = sampling_cost.zero_shot_flops(s, networks.build(s, 10), images)
    tokenizer, model = Tokenizer(TokenizerConfig.of(s.tokenizer, image_size=16)).eval(), real_model(s).eval()
    encoder = meter.flops(lambda: tokenizer.codes(torch.zeros(1, 3, 16, 16)))
    batch_size = s.evaluation.batch_size
    drawing = measured_model(tokenizer, model, s.samples, s.editing, batch_size, knows_labels=knows_labels)
    measured = ZeroShot(drawing, AllOfOneClass(), batch_size)
    noise = torch.randint(256, (images, 3, 16, 16), dtype=torch.uint8)  # the box around it is the whole image
    stream = ImageStream(images, lambda: iter(noise))
    every = measured.applications(stream, torch.arange(images) % 10, torch.zeros(3, 16, 16))
    if not knows_labels:
        every = {name: every[name] for name in ("inpainting", "enrichment")}
    ran = meter.flops(lambda: [application() for application in every.values()])
    encoded = (4 if knows_labels else 2) * images
    assert planned == pytest.approx(ran - encoded * encoder, rel=1e-9)


def test_sampling_runs_the_transcoder_on_masked_tokens_and_everything_twice_where_it_guides() -> None:
    tokens, n, steps = 16, 4, 5
    left = [16, 14, 11, 6]  # 16·cos(π/2·i/4), rounded down
    run = sampling_cost.passes(Sampling(n, steps, guidance_scale=2.0), tokens, batch=2, direct=False)
    assert run == sampling_cost.Passes(2 * n, 2 * sum(left), 2 * sum(left) * steps, n * steps / 2)
    alone = sampling_cost.passes(Sampling(n, steps), tokens, batch=2, direct=False)
    assert (alone.backbone, alone.conditions, alone.denoised) == (n, sum(left), sum(left) * steps)


def test_parameters_are_those_of_the_models() -> None:
    s = config.load(ROOT / "params.yaml")
    with torch.device("meta"):
        found = networks.parameters(networks.build(s, 10))
    tokenizer = Tokenizer(TokenizerConfig.of(s.tokenizer, image_size=s.shards.image_size))
    for name, model in (("tokenizer", tokenizer), ("generator", real_model(s))):
        assert sum(found[name].values()) == sum(p.numel() for p in model.parameters())
    assert found["tokenizer's losses"] == {}


def test_a_new_transcoder_is_planned_beside_the_joint_one() -> None:
    s = settings(transcoder__start="scratch", transcoder__dim=48)
    with torch.device("meta"):
        built = networks.build(s, 10)
        found = networks.parameters(built)["generator"]
    assert found["transcoder"] == sum(p.numel() for p in real_model(s).transcoder.parameters())
    assert found["joint transcoder"] != found["transcoder"]


@pytest.mark.parametrize("bfloat16", [False, True])
def test_activations_are_what_a_real_step_keeps(bfloat16: bool) -> None:
    s = settings(generator__dropout=0.1)
    model, kept = real_model(s).train(), {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    codes, masked = torch.zeros(16, 16, 24), torch.arange(16).expand(16, 16).contiguous()
    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with saving, torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        model.loss(codes, torch.zeros(16, dtype=torch.long), masked, torch.Generator(), s.generator.noise_draws)
    expected = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
    arithmetic = meter.Arithmetic(gpu=False, bfloat16=bfloat16)
    assert trained(s, "generator", arithmetic).memory.activations == expected


@pytest.mark.parametrize("stage", ["tokenizer", "generator", "transcoder"])
@pytest.mark.parametrize("arithmetic", [FLOAT32, LIKE_A_GPU])
def test_activations_grow_by_the_same_for_each_image(stage: str, arithmetic: meter.Arithmetic) -> None:
    sizes = [
        trained(settings(**{f"{stage}__batch_size": batch}), stage, arithmetic).memory.activations
        for batch in (4, 8, 12)
    ]
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] > 0


def test_processes_share_the_batch_and_add_the_buckets_of_their_gradients() -> None:
    s = settings()
    one, two = trained(s, "generator"), trained(s, "generator", processes=2)
    assert (one.images, two.images) == (16, 8)
    assert two.memory.activations < one.memory.activations
    assert (one.memory.buckets, two.memory.buckets) == (0, one.memory.gradients)
    cost, config = denoiser_by_hand(real_model(s).config), real_model(s).config
    again = config.diffusion_steps * (2 * cost["sinusoids"] + 3 * cost["step"])  # each embeds the diffusion steps
    assert two.flops == pytest.approx(one.flops + s.generator.steps * again)


def test_bfloat16_keeps_less_and_norms_on_gpus_keep_float32() -> None:
    s, bfloat16 = settings(generator__dim=128), meter.Arithmetic(gpu=False, bfloat16=True)
    assert trained(s, "generator", bfloat16).memory.activations < trained(s, "generator").memory.activations
    on_cpu, on_gpu = (trained(s, "tokenizer", how).memory.activations for how in (bfloat16, LIKE_A_GPU))
    assert on_cpu < on_gpu < trained(s, "tokenizer").memory.activations


def test_weights_moments_and_average_are_counted_in_float32() -> None:
    s = settings(transcoder__start="joint")
    numbers = [p.numel() for p in real_model(s).parameters()]
    memory = trained(s, "generator", LIKE_A_GPU).memory
    assert (memory.weights, memory.average, memory.gradients) == (4 * sum(numbers),) * 3
    assert memory.optimiser == 8 * sum(numbers)
    fitted = trained(s, "transcoder").memory
    learning = sum(p.numel() for p in real_model(s).transcoder.parameters())
    assert (fitted.weights, fitted.average, fitted.gradients) == (memory.weights, 4 * learning, 4 * learning)


def test_peak_is_the_most_that_is_alive_at_once() -> None:
    def work() -> Tensor:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + 1
        del a
        c = b * 2
        del b
        return c.sum()

    with torch.device("meta"):
        assert 8000 <= meter.peak_bytes(work, FLOAT32) < 8100


def test_lpips_and_the_discriminator_are_planned_without_their_files() -> None:
    s = settings(
        dataset__image_size=32,
        shards__image_size=32,
        tokenizer__attention_resolutions=[8],
        tokenizer__perceptual_weight=1.0,
        tokenizer__perceptual_weights="nowhere.safetensors",
        tokenizer__gan_weight=1.0,
        tokenizer__gan_start=4,
    )
    work = trained(s, "tokenizer")
    before, after = (part.forward + part.backward for part in work.parts)
    assert work.flops == pytest.approx(16 * (3 * before + 2 * after))  # steps 1 to 3, then 4 and 5
    assert after > before > trained(settings(), "tokenizer").flops / 5 / 16


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> plan.Plan:
    """The plan of the tiny pipeline, in two processes."""
    folder = tmp_path_factory.mktemp("plan")
    return plan.make_plan(write(folder), folder, tflops=8.0, float32_tflops=2.0, processes=2)


def test_time_is_work_over_speed_and_processes(made: plan.Plan) -> None:
    stages = {stage.name: stage for stage in made.stages}
    assert stages["shards"].seconds(plan.Speed(1.0, 1.0, "")) is None
    for stage in (s for s in made.stages if s.flops is not None):
        seconds = stage.seconds(plan.Speed(1.0, 1.0, ""))
        shared = (stage.flops + stage.flops_float32) / stage.processes
        assert seconds == pytest.approx((shared + stage.flops_alone) / 1e12)  # flops_beside at the same time
        assert stage.seconds(plan.Speed(4.0, 4.0, "")) == pytest.approx(seconds / 4)
    assert (stages["generator"].processes, stages["evaluation"].processes) == (2, 2)
    assert stages["evaluation"].flops_alone > 0 == stages["samples"].flops_alone  # the classifier


def test_float32_work_goes_at_a_speed_of_its_own(made: plan.Plan) -> None:
    assert made.speed is not None
    codes = next(stage for stage in made.stages if stage.name == "codes")
    assert codes.seconds(made.speed) == pytest.approx(1797 * made.encoder / 2e12 / 2)


def test_speed_is_measured_where_it_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigr.pipeline.planning.speed.measured_tflops", lambda device, dtype: 0.25)
    made = plan.make_plan(write(tmp_path, run__device="cpu", run__precision="float32"), tmp_path)
    assert made.speed is not None
    assert made.speed.tflops == 0.25
    assert any("measured here: products of 1024×1024 matrices on cpu" in line for line in page(made))


@pytest.mark.skipif(torch.cuda.is_available(), reason="plans for a GPU that is not here")
def test_a_gpu_that_is_not_here_is_planned_for_without_times(tmp_path: Path) -> None:
    made = plan.make_plan(write(tmp_path, run__device="cuda", run__precision="auto"), tmp_path)
    assert made.speed is None
    assert set(made.precision.values()) == {"bfloat16"}
    assert "--tflops" in "\n".join(page(made))


def test_what_is_taken_over_costs_nothing(tmp_path: Path) -> None:
    params = write(tmp_path, tokenizer__from="ready/tokenizer", generator__from="ready/generator.pt")
    made = plan.make_plan(params, tmp_path, tflops=1.0)
    assert [work.stage for work in made.training] == ["transcoder"]
    stages = {stage.name: stage for stage in made.stages}
    assert (stages["tokenizer"].flops, stages["generator"].flops) == (0.0, 0.0)
    assert stages["generator"].note == "nothing is trained: from ready/generator.pt"


def test_images_are_counted_where_they_are(tmp_path: Path) -> None:
    s = settings(shards__source="pictures")
    assert image_counts.count_images(s, tmp_path, None, None).total is None
    for split, files in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(files):
                (folder / f"{i}.png").touch()
    found = image_counts.count_images(s, tmp_path, None, None)
    assert (found.train, found.val, found.classes) == (6, 4, 2)

    shards = tmp_path / "data" / "shards"
    shards.mkdir(parents=True)
    splits = {
        split: {"images": n, "class_counts": [n], "shards": [{"name": f"{split}-0.tar", "images": n, "sha256": ""}]}
        for split, n in (("train", 9), ("val", 1))
    }
    for split in splits:
        (shards / f"{split}-0.tar").write_bytes(bytes(2560))
    (shards / "index.json").write_text(json.dumps({"image_size": 16, "classes": ["a"], "splits": splits}))
    found = image_counts.count_images(s, tmp_path, None, None)
    assert (found.train, found.val, found.classes) == (9, 1, 1)
    assert image_counts.disk(s, tmp_path).shard == 2 * 2560 / 10
    given = image_counts.count_images(s, tmp_path, 1000, 7)
    assert (given.total, given.classes) == (1000, 7)
    others = settings(shards__image_size=32, shards__source="elsewhere", tokenizer__attention_resolutions=[8])
    assert image_counts.count_images(others, tmp_path, None, None).total is None  # those shards hold other images


def test_codes_take_768_bytes_a_view_and_draw_at_k_24_and_256_tokens(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    values = config.read(ROOT / "recipes" / "imagenet256-XXL-d24.yaml")
    values["generator"]["layers"] = 1  # on which the size of codes does not depend
    YAML(typ="safe").dump(values, path)
    recipe = config.load(path)
    draws = recipe.codes.draws
    assert image_counts.disk(recipe, tmp_path).code == 2 * (1 + draws) * 768 + 8
    alone = recipe.model_copy(update={"codes": recipe.codes.model_copy(update={"draws": 0})})
    assert image_counts.disk(alone, tmp_path).code == 2 * 768 + 8
    made = plan.make_plan(path, tmp_path, tflops=400, images=1_331_167, classes=1000)
    row = next(line for line in page(made) if line.strip().startswith("data/codes"))
    assert f"{draws} draws" in row
    assert f"{(2 * (1 + draws) * 768 + 8) * 1_331_167 / 2**30:.2f}" in row


def test_codes_take_on_disk_what_is_planned(tmp_path: Path) -> None:
    """To the byte, but for a header in each file."""
    worlds.write_shards(tmp_path, size=16)
    s = settings(shards__source="pictures", codes__views=["identity", "flip"], codes__draws=3, run__device="cpu")
    save(tmp_path / "models" / "tokenizer", Tokenizer(TokenizerConfig.of(s.tokenizer, image_size=16)))
    codes_stage.run(s, Context(tmp_path))
    files = list((tmp_path / "data" / "codes").glob("*.safetensors"))
    size = sum(path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little") for path in files)
    assert size == image_counts.disk(s, tmp_path).code * 16


@pytest.mark.parametrize(
    ("changes", "each"),
    [
        ({"text.encoder": "learned", "text.tokens": 24}, 24 * 4 + 8),
        ({"text.encoder": "clip", "text.from": "nowhere", "text.tokens": 77}, 78 * 768 * 2 + 8),
        ({"text.encoder": "t5", "text.from": "nowhere", "text.tokens": 10}, 10 * 4096 * 2 + 8),
    ],
)
def test_texts_take_on_disk_at_most_what_is_planned(tmp_path: Path, changes: dict[str, Any], each: int) -> None:
    path = write(tmp_path, **{key.replace(".", "__"): value for key, value in changes.items()})
    made = plan.make_plan(path, tmp_path, tflops=1.0, images=10_000_000, classes=4)
    row = next(line for line in page(made) if line.strip().startswith("data/text"))
    assert f"{each:,}" in row and f"{each * 10_000_000 / 2**30:,.2f}" in row and "at most" in row
    assert made.as_json()["disk"]["text"] == each
    longer = "a text that is cut " * 30
    if changes["text.encoder"] == "learned":
        encoder = BytePairs.learned([longer], 257, 24)
        write_texts(tmp_path / "a.safetensors", encoder.read([longer] * 50), "hash", 50)
        size = (tmp_path / "a.safetensors").stat().st_size
        header = int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little")
        assert size - 8 - header == 50 * each + 8  # and where the last ends


def test_models_of_classes_have_no_texts_on_disk_and_draw_none_of_training_captions(made: plan.Plan) -> None:
    assert made.disk.text is None and not any("data/text" in line for line in page(made))
    s = settings()
    assert s.images_drawn == s.samples.count
    texts = settings(text__encoder="learned", generator__text_heads=2)
    assert texts.images_drawn == texts.samples.count + texts.samples.train_captions


def test_the_judge_of_captions_is_planned_unless_clip_judges(tmp_path: Path) -> None:
    ours = settings(text__encoder="learned", generator__text_heads=2)
    more = settings(text__encoder="learned", generator__text_heads=2, evaluation__judge_steps=10)
    clip = settings(text__encoder="learned", generator__text_heads=2, evaluation__clip="clip")
    with torch.device("meta"):
        few, many, none = (sum(plan.judge_flops(s, 100, 50)) for s in (ours, more, clip))
    assert none == 0 < few < many < 2 * few


def test_trainings_of_the_evaluation_run_at_once_in_several_processes(tmp_path: Path) -> None:
    params = write(tmp_path, text__encoder="learned", generator__text_heads=2)
    alone, several = (
        next(s for s in plan.make_plan(params, tmp_path, tflops=1.0, processes=n).stages if s.name == "evaluation")
        for n in (1, 2)
    )
    both, classifier, judge = alone.flops_alone, several.flops_alone, several.flops_beside
    assert alone.flops_beside == 0 < min(classifier, judge) and classifier + judge == both
    assert several.flops_float32 == alone.flops_float32  # the same work, in two


def test_features_take_two_bytes_a_number_of_every_layer_for_the_images_that_are_measured(tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "imagenet256-L-d20-representation.yaml"
    disk = image_counts.disk(config.load(recipe), tmp_path)
    assert (disk.feature, disk.featured) == (2 * 24 * 1024, (1_281_167, 1_281_167))
    made = plan.make_plan(recipe, tmp_path, tflops=400, images=1_331_167, classes=1000)
    row = next(line for line in page(made) if line.strip().startswith("features"))
    assert f"{1_331_167 * 2 * 24 * 1024 / 2**30:.1f}" in row


def test_the_reference_and_the_probes_images_cost_each_their_own(tmp_path: Path) -> None:
    def cost(**limits: int) -> float:
        s = settings(**{f"evaluation__{name}": number for name, number in limits.items()})
        with torch.device("meta"):
            built = networks.build(s, 10)
            shared, trainings = plan.evaluation_flops(s, built, image_counts.ImageCounts(1000, 20, 10, "", ""))
            return shared + sum(trainings)

    few = cost(reference_images=100, probe_images=100)
    more, longer = cost(reference_images=200, probe_images=100), cost(reference_images=100, probe_images=200)
    assert few < more and few < longer
    both = cost(reference_images=200, probe_images=200)
    assert both - few == pytest.approx((more - few) + (longer - few))
    assert cost(reference_images=5000, probe_images=5000) == cost(reference_images=1000, probe_images=1000)


def bigr(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What the command says in `folder`, where there is no data."""
    return subprocess.run([sys.executable, "-m", "bigr", *words], cwd=folder, capture_output=True, text=True)


def test_the_command_prints_a_page_or_json_and_needs_no_data(tmp_path: Path) -> None:
    write(tmp_path)
    done = bigr(tmp_path, "plan", "--tflops", "0.1", "--json")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert [stage["name"] for stage in values["stages"]] == list(NAMES)
    assert values["images"]["total"] == 1797
    assert values["training"][1]["memory"]["activations"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_the_page_names_a_unit_in_every_column(made: plan.Plan) -> None:
    text = "\n".join(page(made))
    for words in ("Parameters", " M\n", "forward GFLOP", "Memory of one process, GiB", "bytes an image"):
        assert words in text
    assert re.search(r"Time of the arithmetic +TFLOP +processes +h:mm:ss", text)
    assert "At 8 TFLOP/s a process in bfloat16, 2 in float32; as given." in text


@pytest.mark.parametrize("name", ["imagenet256-XXL-d32", "imagenet512-L-d32"])
def test_the_page_fits_100_columns(name: str, tmp_path: Path) -> None:
    made = plan.make_plan(ROOT / f"recipes/{name}.yaml", tmp_path, tflops=400, images=1_331_167, classes=1000)
    assert max(map(len, page(made))) <= 100


def test_a_wrong_file_is_the_same_line_as_from_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = settings().model_dump()
    values["generator"]["heads"] = 3
    path = tmp_path / "wrong.yaml"
    YAML(typ="safe").dump(values, path)
    said = []
    for words in (["plan", str(path)], ["check", "--params", str(path)]):
        sys.argv = ["bigr", *words]
        with pytest.raises(SystemExit) as ended:
            program.main()
        assert ended.value.code == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert said[0].startswith("wrong.yaml: generator.heads must be ")


@pytest.mark.parametrize("option", ["tflops", "float32_tflops", "images", "classes", "processes"])
def test_an_option_that_cannot_be_is_named(tmp_path: Path, option: str) -> None:
    with pytest.raises(BigrError, match=f"--{option.replace('_', '-')} must be a number above 0, got 0"):
        plan.make_plan(tmp_path / "params.yaml", tmp_path, **{option: 0})


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "—"), (0.2, "< 0:00:01"), (3661, "1:01:01"), (360000, "4 d 4:00:00")]
)
def test_durations_read_as_hours_or_days(seconds: float | None, text: str) -> None:
    from bigr.pipeline.planning.plan_page import duration

    assert duration(seconds) == text
