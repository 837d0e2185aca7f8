"""A project whose stages take no time: the real flow, settings and deployment around four small scripts in dvc.yaml."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from bigr import config

ROOT = Path(__file__).parents[1]
STAGES = ["dataset", "shards", "samples", "evaluation"]

DVC = """\
stages:
  dataset:
    cmd: python step.py dataset data/dataset/image
    deps: [step.py]
    params: [dataset]
    outs: [data/dataset]
  shards:
    cmd: python step.py shards data/shards/shard
    deps: [step.py, "${shards.source}"]
    params: [shards]
    outs: [data/shards]
  samples:
    cmd: python step.py samples outputs/samples.png
    deps: [step.py, data/shards]
    params: [samples]
    outs: [outputs/samples.png]
  evaluation:
    cmd: python step.py evaluation outputs/metrics.json
    deps: [step.py, outputs/samples.png]
    params: [evaluation]
    metrics: [outputs/metrics.json]
params: [params.yaml]
metrics: [outputs/metrics.json]
"""

BAD_FRACTION = 0.13
COMPLAINT = "shards.source: no image can be decoded; name another folder"

STEP = f"""\
import json, os, sys, time
from pathlib import Path

from PIL import Image
from ruamel.yaml import YAML

stage, out = sys.argv[1], Path(sys.argv[2])
settings = YAML(typ="safe").load(Path("params.yaml"))
print(f"12:00:00 {{stage}} of execution {{os.environ.get('BIGR_EXECUTION_NAME')}}", flush=True)
if settings["shards"]["val_fraction"] == {BAD_FRACTION} and stage == "shards":
    print("{COMPLAINT}", file=sys.stderr)
    sys.exit(2)
marker = Path(os.environ.get("MINI_PROJECT_KILL", "/nonexistent"))
if stage == "shards" and marker.exists():
    number = int(marker.read_text())
    marker.unlink()
    os.kill(os.getpid(), number)
hold = Path(os.environ.get("MINI_PROJECT_HOLD", "/nonexistent"))
while stage == "shards" and hold.exists():
    Path(hold.with_suffix(".pid")).write_text(str(os.getpid()))
    time.sleep(0.05)
out.parent.mkdir(parents=True, exist_ok=True)
if stage == "samples":
    Image.new("L", (32, 32), int(10 * settings["samples"]["guidance_scale"])).save(out)
else:
    out.write_text(json.dumps({{"guidance": settings["samples"]["guidance_scale"]}}))
"""


def make(folder: Path) -> Path:
    """Create the project in `folder`, as a git repository with one commit."""
    folder.mkdir(parents=True)
    for name in ("flows", "bigr"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "prefect.yaml", "pyproject.toml", "Procfile"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "dvc.yaml").write_text(DVC)
    (folder / "step.py").write_text(STEP)
    (folder / ".gitignore").write_text("/data/\n/outputs/\n/.prefect/\n/.credentials/\n__pycache__/\n")
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, folder / ".dvc" / name)
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    """Make `folder` a git repository with one commit."""
    for command in ("git init -q -b main", "git add -A"):
        run(folder, *command.split())
    run(folder, *["git", "-c", "user.name=Ada", "-c", "user.email=ada@localhost", "commit", "-q", "-m", "first"])


def guidance(folder: Path) -> float:
    """The setting samples.guidance_scale, which the project's evaluation reports as its only figure."""
    return float(config.read(folder / "params.yaml")["samples"]["guidance_scale"])


def holder(file: Path) -> psutil.Process:
    """The stage that MINI_PROJECT_HOLD holds, once it has written its number to `file`."""
    end = time.monotonic() + 60
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < end, "no stage was held"
        time.sleep(0.05)
    return psutil.Process(int(file.read_text()))


def run(folder: Path, *words: str, **environment: str) -> str:
    """Standard output of a command of this environment, with `environment` added; fails with all that it said."""
    program = Path(sys.executable).with_name(words[0])
    done = subprocess.run(
        [str(program) if program.exists() else words[0], *words[1:]],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(words)}\n{done.stdout}\n{done.stderr}")
    return done.stdout
