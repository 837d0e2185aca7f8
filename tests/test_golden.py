"""The models compute what the published ones compute: every output of every golden vector, to 1e-4 in float32.

`BIGR_GOLDEN_DIR` names another folder of vectors (safetensors files; docs/method.md, section 9); the shape of the model
is read from each file's header. The largest error of each output is printed. Whatever a file holds is either an input
that is used, or an output that is compared; anything else fails.
"""

import ast
import json
import os
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from bigr.interop.published.weight_names import generator_state, tokenizer_state
from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.models.masked.diffusion import weighted_bce
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.runtime.files import write_tensors
from bigr.sampling.reverse import guided_logits, x0_probability

OURS = Path(__file__).parent / "golden"
FOLDER = Path(os.environ.get("BIGR_GOLDEN_DIR") or OURS).expanduser()
FILES = sorted(FOLDER.glob("*.safetensors"))
TOLERANCE = 1e-4
INPUTS = {"in.images", "in.codes", "in.labels", "in.mask"}
DIFFUSION_INPUTS = {"diff.x0", "diff.xt", "diff.t", "diff.s", "diff.cond", "diff.uncond"}

Vectors = dict[str, Tensor]


class Header(dict[str, Any]):
    """A file's metadata, which says so where a key is not there."""

    def __missing__(self, key: str) -> Any:
        pytest.fail(f"the header has no {key}; it names {', '.join(self) or 'nothing'}")

    def shape(self, config: type[Any]) -> Any:
        """The config of the model that the header describes; what it does not name is as published."""
        chosen = {
            field.name: self[field.name]
            for field in fields(config)
            if field.name in self or (field.default is MISSING and field.default_factory is MISSING)
        }
        return config(**{name: tuple(v) if isinstance(v, list) else v for name, v in chosen.items()})


def read(path: Path) -> tuple[Header, Vectors]:
    with safe_open(path, "pt") as file:
        header = Header({key: value_of(text) for key, text in (file.metadata() or {}).items()})
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def value_of(text: str) -> Any:
    """A header's value: JSON, or as Python writes it."""
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError):
            return parse(text)
    return text


def state_of(vectors: Vectors) -> Vectors:
    return {name.removeprefix("state."): t for name, t in vectors.items() if name.startswith("state.")}


def tokenizer_outputs(header: Header, vectors: Vectors) -> Vectors:
    model = Tokenizer(header.shape(TokenizerConfig)).eval().to(vectors["in.images"].device)
    model.load_state_dict(tokenizer_state(state_of(vectors), model.state_dict()))
    images, grid = vectors["in.images"], (model.grid, model.grid)
    return {
        "out.bit_probs": model.encode(images).mT.unflatten(2, grid),
        "out.bits": model.codes(images).mT.unflatten(2, grid).float(),
        "out.images": model.decode(vectors["out.bits"].flatten(2).mT),
    }


def generator_outputs(header: Header, vectors: Vectors) -> Vectors:
    model = BiGR(header.shape(BiGRConfig)).eval().to(next(iter(vectors.values())).device)
    model.load_state_dict(generator_state(state_of(vectors), model.state_dict()))
    diffusion = model.transcoder.diffusion
    found = {f"sched.{name}": getattr(diffusion, name) for name in ("k", "b", "beta")}
    if "in.codes" in vectors:
        codes, labels, mask = (vectors[f"in.{name}"] for name in ("codes", "labels", "mask"))
        found["out.hidden"] = model.hidden(codes, labels, mask.bool())
        found |= {f"out.features.{layer}": stream for layer, stream in enumerate(model.features(codes, labels))}
    if "diff.x0" in vectors:
        found |= transcoder_outputs(model, header, vectors)
    return found


def transcoder_outputs(model: BiGR, header: Header, vectors: Vectors) -> Vectors:
    diffusion, transcoder = model.transcoder.diffusion, model.transcoder
    x0, xt, t, s = (vectors[f"diff.{name}"] for name in ("x0", "xt", "t", "s"))
    conditional = transcoder(xt, t, vectors["diff.cond"])
    unconditional = transcoder(xt, t, vectors["diff.uncond"])
    guided = guided_logits(conditional, unconditional, header["guidance_scale"], header["temperature"])
    x0_prob = x0_probability(transcoder.x0_logits(guided, xt))
    return {
        "diff.noisy_prob": diffusion.noisy_probability(x0, t),
        "diff.flip_logits": conditional,
        "diff.flip_logits_uncond": unconditional,
        "diff.wbce": weighted_bce(conditional, (x0 - xt).abs()),
        "diff.x0_logits": transcoder.x0_logits(conditional, xt),
        "diff.x0_prob_guided": x0_prob,
        "diff.posterior": diffusion.posterior(x0_prob, xt, t, s),
    }


@torch.no_grad()
def errors_of(path: Path, device: str = "cpu", unsure: float = TOLERANCE, relative: bool = False) -> dict[str, float]:
    """The largest error of each output that a file holds; fails where it holds anything that is not compared.

    unsure: a bit as close to ½ as that may fall to either side; relative: errors are shares of the output's largest
    number, where that is above 1.
    """
    header, vectors = read(path)
    vectors = {name: t.to(device) for name, t in vectors.items()}
    outputs = (tokenizer_outputs if "in.images" in vectors else generator_outputs)(header, vectors)
    held = {name for name in vectors if not name.startswith("state.")} - INPUTS - DIFFUSION_INPUTS
    if unknown := sorted(held - outputs.keys()):
        pytest.fail(f"{path.name} holds what nothing here computes: {', '.join(unknown)}")
    if not held:
        pytest.fail(f"{path.name} holds no outputs; golden vectors are named out.*, diff.* and sched.*")
    scales = {name: max(1.0, vectors[name].abs().max().item()) if relative else 1.0 for name in held}
    return {name: error_of(name, outputs[name], vectors, unsure) / scales[name] for name in sorted(held)}


def error_of(name: str, value: Tensor, vectors: Vectors, unsure: float) -> float:
    expected = vectors[name]
    assert value.shape == expected.shape, f"{name} has shape {tuple(value.shape)}; expected {tuple(expected.shape)}"
    error = (value - expected).abs()
    if name == "out.bits" and "out.bit_probs" in vectors:
        error = error[(vectors["out.bit_probs"] - 0.5).abs() > unsure]
    return error.max().item() if error.numel() else 0.0


def beyond_tolerance(errors: dict[str, float]) -> dict[str, float]:
    return {name: error for name, error in errors.items() if not error <= TOLERANCE}  # NaN is beyond


def test_there_are_golden_vectors() -> None:
    assert FOLDER.is_dir(), f"BIGR_GOLDEN_DIR: {FOLDER} is no folder"
    assert FILES, f"BIGR_GOLDEN_DIR: no *.safetensors in {FOLDER}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_output_matches_the_published_model(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = errors_of(path)
    with capsys.disabled():
        print(f"\n{path.name}: largest errors")
        print("\n".join(f"  {name:24} {error:.1e}" for name, error in errors.items()))
    assert beyond_tolerance(errors) == {}


def test_our_vectors_hold_every_kind_of_output() -> None:
    kinds = {name.rstrip("0123456789.") for path in OURS.glob("*.safetensors") for name in errors_of(path)}
    assert kinds == {
        *("out.bit_probs", "out.bits", "out.images", "out.hidden", "out.features"),
        *("diff.noisy_prob", "diff.flip_logits", "diff.flip_logits_uncond", "diff.wbce", "diff.x0_logits"),
        *("diff.x0_prob_guided", "diff.posterior", "sched.k", "sched.b", "sched.beta"),
    }


@pytest.mark.parametrize(("file", "name"), [("tokenizer_a", "out.images"), ("generator_a", "diff.wbce")])
def test_an_output_that_is_off_in_one_place_is_noticed(file: str, name: str, tmp_path: Path) -> None:
    errors = errors_of(changed(file, tmp_path, **{name: lambda tensor: tensor.flatten()[0].add_(2e-4)}))
    assert beyond_tolerance(errors).keys() == {name}


@pytest.mark.parametrize("name", ["out.attention", "diff.entropy", "sched.alpha", "in.text", "surprise"])
def test_a_tensor_that_nothing_compares_fails(name: str, tmp_path: Path) -> None:
    path = changed("generator_a", tmp_path)
    header, vectors = read(path)
    write_tensors(path, vectors | {name: torch.zeros(1)}, {key: json.dumps(value) for key, value in header.items()})
    with pytest.raises(pytest.fail.Exception, match=rf"generator_a\.safetensors holds what nothing .* {name}"):
        errors_of(path)


def test_a_header_that_lacks_a_part_of_the_shape_says_which(tmp_path: Path) -> None:
    path = changed("tokenizer_a", tmp_path)
    header, vectors = read(path)
    write_tensors(path, vectors, {key: json.dumps(value) for key, value in header.items() if key != "embed_dim"})
    with pytest.raises(pytest.fail.Exception, match="the header has no embed_dim"):
        errors_of(path)


def changed(file: str, folder: Path, **changes: Any) -> Path:
    """A copy of one of our files, in which functions have changed tensors in place."""
    header, vectors = read(OURS / f"{file}.safetensors")
    for name, change in changes.items():
        change(vectors[name])
    path = folder / f"{file}.safetensors"
    write_tensors(path, vectors, {key: json.dumps(value) for key, value in header.items()})
    return path
