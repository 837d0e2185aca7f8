"""A copy of the project in which `dvc` can be let loose, with the real stages or with a stand-in that takes no time."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests import preloaded, tiny

ROOT = Path(__file__).parents[1]
COPIED = ("bigr", "dvc.yaml", "params.yaml", ".dvcignore", ".gitignore")
RAN = "ran.log"

STAND_IN = f"""#!{sys.executable}
# Writes each output of the stage with a digest of all that dvc.yaml says it depends on, and notes that it ran.
import hashlib, json, sys
from pathlib import Path
from ruamel.yaml import YAML

stage = sys.argv[2]
settings = YAML(typ="safe").load(Path("params.yaml"))
spec = YAML(typ="safe").load(Path("dvc.yaml").read_text().replace("${{shards.source}}", settings["shards"]["source"]))
spec = spec["stages"][stage]
digest = hashlib.sha256(stage.encode())
for key in spec["params"]:
    value = settings
    for part in key.split("."):
        value = value[part]
    digest.update(json.dumps(value).encode())
for dep in map(Path, spec.get("deps", [])):
    for path in sorted(dep.rglob("*")) if dep.is_dir() else [dep]:
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.read_bytes())
number = int(digest.hexdigest()[:6], 16)
for out in map(Path, spec["outs"] + spec.get("metrics", [])):
    path = out if out.suffix else out / "content"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text({{".json": json.dumps({{"figure": number}}), ".csv": f"step,train_loss\\n1,{{number}}\\n"}}.get(
        path.suffix, str(number)))
with open("{RAN}", "a") as file:
    file.write(stage + "\\n")
"""


def make(folder: Path, *, real: bool) -> Path:
    """Copy the project to `folder`/project, a git repository with one commit; its `bigr` is real or the stand-in."""
    project = folder / "project"
    project.mkdir(parents=True)
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, project / name)
    (project / ".dvc").mkdir()
    for name in ("config", "plots.html", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, project / ".dvc" / name)
    _set_site(project)
    with (project / ".gitignore").open("a") as file:
        file.write(f"/{RAN}\n")
    command = folder / "bin" / "bigr"
    command.parent.mkdir()
    command.write_text(preloaded.CLIENT if real else STAND_IN)
    command.chmod(0o755)
    for words in ("git init -q -b main", "git add -A", "git commit -q -m first"):
        run(project, *words.split())
    return project


def make_tiny(folder: Path, **overrides: object) -> Path:
    """The project with its real stages on 72 images of two classes, under the settings of `tiny` and `overrides`
    (section__key=value), committed."""
    project = make(folder, real=True)
    draws = np.random.default_rng(0)
    for number in range(72):
        path = project / "pictures" / ("val" if number < 24 else "train") / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    own = {key.replace("__", "."): value for key, value in overrides.items()}
    tiny.apply(project / "params.yaml", tiny.OVERRIDES | {"shards.source": "pictures"} | own)
    for words in ("git add -A", "git commit -q -m tiny"):
        run(project, *words.split())
    return project


def copy(project: Path, folder: Path, *, records: bool = False) -> Path:
    """Copy a project that `make` made, with its data and cache, to `folder`/project.

    records: with its runs in MLflow too; their files, and those of runs to come, are in the original's mlartifacts.
    """
    left_out = ["mlartifacts", "site"] if records else ["mlflow.db*", "mlartifacts", "site"]
    shutil.copytree(project.parent, folder, symlinks=True, ignore=shutil.ignore_patterns(*left_out))
    _set_site(folder / project.name)
    return folder / project.name


def _set_site(project: Path) -> None:
    """Have DVC keep beside the project what it keeps for all of a user's projects."""
    text = f"[core]\n    site_cache_dir = {project.parent / 'site'}\n"
    (project / ".dvc" / "config.local").write_text(text)


def environment(project: Path) -> dict[str, str]:
    """What a command in the project sees: its `bigr`, this interpreter's tools, no traces of an outer execution."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "BIGR_", "MLFLOW_", "GIT_"))}
    tools = [str(project.parent / "bin"), str(Path(sys.executable).parent), kept["PATH"]]
    command = project.parent / "bin" / "bigr"
    real = command.exists() and command.read_text() == preloaded.CLIENT
    kept |= {preloaded.VARIABLE: preloaded.start()} if real else {}
    names = {f"GIT_{who}_{what}": "ada@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {**kept, **names, "PATH": os.pathsep.join(tools), "SHELL": "/bin/sh", "OMP_NUM_THREADS": "1"}


def run(project: Path, *words: str, **extra: str) -> str:
    """Standard output of a command in the project; fails with all that it said."""
    done = subprocess.run(words, cwd=project, env=environment(project) | extra, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def ran(project: Path) -> list[str]:
    """The stages that the stand-in has run since the last call, in order."""
    log = project / RAN
    stages = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return stages
