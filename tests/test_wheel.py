"""`pip install bigr` is the model alone: what its metadata names is enough to load, generate, edit and train."""

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from bigr.runtime import extras
from bigr.runtime.errors import BigrError

ROOT = Path(__file__).parents[1]
MODEL = """
import pkgutil, sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch
from PIL import Image
import bigr
from bigr.interop.folders import save
from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.training.optimiser import EMA, adamw

assert Path(bigr.__file__).is_relative_to(sys.prefix), bigr.__file__
for package in ("config", "models", "sampling", "imaging", "interop", "training"):
    for module in pkgutil.walk_packages(import_module(f"bigr.{package}").__path__, f"bigr.{package}."):
        import_module(module.name)

torch.manual_seed(0)
tokenizer = Tokenizer(TokenizerConfig(8, 6, 32, 32, (1, 2), 1, (4,)))
network = BiGR(BiGRConfig(6, 4, 3, 32, 2, 2, 32, 1, ffn_multiple_of=32, diffusion_steps=16))

# A training step of each model.
how = SimpleNamespace(learning_rate=1e-3, betas=(0.9, 0.99), weight_decay=0.05)
images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
masked = torch.rand(4, 16).argsort(1)[:, :8]


def step(module, loss):
    optimizer, average = adamw(module, how), EMA(module, 0.5)
    loss.backward()
    optimizer.step()
    average.update(module)
    assert loss.isfinite() and loss.requires_grad


step(tokenizer, (tokenizer.decode(tokenizer.encode(images)) - images).abs().mean())
step(network, network.loss(tokenizer.codes(images), labels, masked, torch.Generator().manual_seed(0)))

save(Path("models/tokenizer"), tokenizer)
save(Path("models/bigr"), network)
model = bigr.load("models", device="cpu")
image, mask = Image.new("RGB", (20, 12), "red"), np.zeros((12, 20), bool)
mask[2:6, 3:9] = True
how = {"iterations": 2, "diffusion_steps": 2}
assert [picture.size for picture in model.generate([0, "1"], **how)] == [(8, 8), (8, 8)]
assert model.inpaint(image, mask, **how)[0].size == (20, 12)
assert model.inpaint(image, mask, blend="poisson", **how)[0].size == (20, 12)
model.edit(image, mask, 2, **how)
model.outpaint(image, margins=2, **how)
model.interpolate(0, 1, 3, **how)
model.enrich(image, **how)
model.reconstruct(image)
model.features(image)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the project as git has it, built without a network."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    which = ("bigr", "flows", "pyproject.toml", "README.md", "LICENSE")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *which]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    quiet = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *quiet, "-w", str(out), str(copy)], check=True)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and the distributions that it requires without an extra, and nothing else."""
    folder = tmp_path_factory.mktemp("light")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), *install], check=True)
    (about,) = packages.glob("bigr-*.dist-info")
    for name in required(metadata.Distribution.at(about).requires or []):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(str(distribution.locate_file(top)))
    return folder


def required(requirements: list[str]) -> set[str]:
    """The names of all distributions that these requirements bring, themselves and what they require, by metadata."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        wanted = [{"extra": extra} for extra in requirement.extras] + [{"extra": ""}]
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        assert metadata.version(requirement.name) in requirement.specifier, requirement
        found.add(requirement.name)
        for text in metadata.requires(requirement.name) or []:
            inner = Requirement(text)
            if inner.name not in found and (inner.marker is None or any(map(inner.marker.evaluate, wanted))):
                inner.marker = None
                waiting.append(inner)
    return found


def run(light: Path, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """A program of the environment, in `folder`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    command = [str(light / "bin" / words[0]), *words[1:]]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_wheel_holds_the_package_bigr_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"bigr"}
    assert {"bigr/py.typed", "bigr/app/brush.js"} <= set(names)


def test_the_model_alone_loads_generates_edits_and_trains(light: Path, tmp_path: Path) -> None:
    done = run(light, tmp_path, "python", "-c", MODEL)
    assert done.returncode == 0, done.stderr
    done = run(light, tmp_path, "bigr", "generate", "1", "--model", "models", "--iterations", "2")
    assert done.returncode == 0, done.stderr
    done = run(light, tmp_path, "bigr", "generate", "1", "--model", "models", "--trace")
    assert "--trace needs the extra `evaluation`" in done.stderr


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("app", ("bigr", "app")),
        ("pipeline", ("bigr", "serve")),
        ("evaluation", ("bigr", "probe", "--images", ".")),
        ("pipeline", ("bigr", "run", "tokenizer")),
        ("train", ("python", "-c", "from bigr.data.embedded import digits; digits.write_digits('x', 8, 10)")),
        ("evaluation", ("python", "-c", "import bigr.evaluation.plots")),
        ("pipeline", ("python", "-c", "import bigr; bigr.load('models:/bigr@champion')")),
    ],
)
def test_what_needs_an_extra_names_it(light: Path, tmp_path: Path, extra: str, words: tuple[str, ...]) -> None:
    done = run(light, tmp_path, *words)
    assert done.returncode == (2 if words[0] == "bigr" else 1)
    said = done.stderr.splitlines()
    assert f"needs the extra `{extra}`: pip install 'bigr[{extra}]'" in said[-1]
    assert words[0] != "bigr" or len(said) == 1


def test_an_extra_brings_what_the_extras_in_it_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=2", 'b>=1,<2; extra == "small"', 'bigr[small]; extra == "large"', 'c[x]==1; extra == "large"']
    monkeypatch.setattr(extras.metadata, "requires", lambda name: lines)
    assert extras.distributions("large") == ["b", "c"]
    extras._missing.cache_clear()
    with pytest.raises(BigrError, match=re.escape("it needs the extra `large`: pip install 'bigr[large]'")):
        extras.require("large", "it")
    extras._missing.cache_clear()
