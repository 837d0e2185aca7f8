"""The models compute what the published ones compute: every output of every golden vector, to 1e-4 in float32.

`BIGR_GOLDEN_DIR` names another folder of vectors; the shape of the model is read from each file's header.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from bigr.interop.published import generator_state, tokenizer_state
from bigr.models.bigr import BiGR, BiGRConfig
from bigr.models.diffusion import weighted_bce
from bigr.models.tokenizer import Tokenizer, TokenizerConfig
from bigr.sampling.reverse import guided_logits, x0_probability

FOLDER = Path(os.environ.get("BIGR_GOLDEN_DIR") or Path(__file__).parent / "golden")
TOLERANCE = 1e-4
FILES = sorted(FOLDER.glob("*.safetensors"))


def read(path):
    with safe_open(path, "pt") as file:
        header = {key: _value(text) for key, text in file.metadata().items()}
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _value(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def state_of(tensors):
    return {name.removeprefix("state."): t for name, t in tensors.items() if name.startswith("state.")}


def tokenizer_outputs(header, tensors):
    config = TokenizerConfig(
        image_size=header["image_size"],
        code_bits=header["code_bits"],
        embed_dim=header["embed_dim"],
        base_channels=header["base_channels"],
        channel_multipliers=tuple(header["channel_multipliers"]),
        res_blocks=header["res_blocks"],
        attention_resolutions=tuple(header["attention_resolutions"]),
        norm_first=header["norm_first"],
    )
    model = Tokenizer(config).eval()
    model.load_state_dict(tokenizer_state(state_of(tensors), model.state_dict()))
    images = tensors["in.images"]
    grid = (config.grid, config.grid)
    return {
        "out.bit_probs": model.encode(images).mT.unflatten(2, grid),
        "out.bits": model.codes(images).mT.unflatten(2, grid).float(),
        "out.images": model.decode(tensors["out.bits"].flatten(2).mT),
    }


def generator_outputs(header, tensors):
    config = BiGRConfig(
        code_bits=header["code_bits"],
        grid=header["grid"],
        num_classes=header["num_classes"],
        dim=header["dim"],
        layers=header["layers"],
        heads=header["heads"],
        ffn_multiple_of=header["ffn_multiple_of"],
        transcoder_dim=header["transcoder_dim"],
        transcoder_blocks=header["transcoder_blocks"],
        diffusion_steps=header["diffusion_steps"],
    )
    model = BiGR(config).eval()
    model.load_state_dict(generator_state(state_of(tensors), model.state_dict()))
    diffusion, transcoder = model.transcoder.diffusion, model.transcoder
    x0, xt, t, s = (tensors[f"diff.{name}"] for name in ("x0", "xt", "t", "s"))
    conditional = transcoder(xt, t, tensors["diff.cond"])
    unconditional = transcoder(xt, t, tensors["diff.uncond"])
    guided = guided_logits(conditional, unconditional, header["guidance_scale"], header["temperature"])
    x0_prob = x0_probability(transcoder.x0_logits(guided, xt))
    features = model.features(tensors["in.codes"], tensors["in.labels"])
    return {
        "out.hidden": model.hidden(tensors["in.codes"], tensors["in.labels"], tensors["in.mask"].bool()),
        **{f"out.features.{layer}": stream for layer, stream in enumerate(features)},
        "diff.noisy_prob": diffusion.noisy_probability(x0, t),
        "diff.flip_logits": conditional,
        "diff.flip_logits_uncond": unconditional,
        "diff.wbce": weighted_bce(conditional, (x0 - xt).abs()),
        "diff.x0_logits": transcoder.x0_logits(conditional, xt),
        "diff.x0_prob_guided": x0_prob,
        "diff.posterior": diffusion.posterior(x0_prob, xt, t, s),
        "sched.k": diffusion.k,
        "sched.b": diffusion.b,
        "sched.beta": diffusion.beta,
    }


def test_there_are_golden_vectors():
    assert FILES, f"no *.safetensors in {FOLDER}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@torch.no_grad()
def test_every_output_matches_the_published_model(path, capsys):
    header, tensors = read(path)
    outputs = (tokenizer_outputs if "image_size" in header else generator_outputs)(header, tensors)
    expected = {name for name in tensors if name.startswith(("out.", "diff.", "sched."))}
    given = {"diff.x0", "diff.xt", "diff.t", "diff.s", "diff.cond", "diff.uncond"}
    assert outputs.keys() == expected - given

    errors = {name: (value - tensors[name]).abs().max().item() for name, value in outputs.items()}
    with capsys.disabled():
        print("".join(f"\n  {path.stem} {name}: {error:.1e}" for name, error in errors.items()))
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE} == {}
