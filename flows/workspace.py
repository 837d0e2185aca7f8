"""The clone of the project in which a flow run with settings of its own works. (Others work in the user's folder.)

The clone holds what the folder holds at that moment (the last commit, and what was changed or added since), shares
DVC's cache, and alone has the overridden params.yaml: the user's files stay untouched. It is removed when the run
succeeds or fails; after a kill it stays, so that a retry finds its checkpoints, until that retry ends, or `make clean`.
Only the user can read it, since DVC's passwords are copied into it. Its result becomes an experiment of the user's
project (`dvc exp show`) under the flow run's name.
"""

import configparser
import copy
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigr import config
from bigr.pipeline import dvcfile
from bigr.runtime.errors import BigrError
from flows.execution import command, output

FOLDER = Path(".dvc/tmp/flows")
"""The clones, one a flow run: inside .dvc, so that DVC, git and the tracking find the project around them."""

_LOCAL = ".dvc/config.local"
"""DVC's settings of one machine, passwords of remotes among them."""
_MADE = ".git/made"
"""Marks a complete clone."""


def merge(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings with `overrides` (dotted key → value) laid over them. Raises `BigrError` if they do not fit."""
    merged = copy.deepcopy(dict(values))
    _lay_over(merged, overrides)
    try:
        config.validate(merged, "settings")
    except BigrError as error:
        raise BigrError("; ".join(str(error).splitlines())) from None
    return merged


def _lay_over(values: Any, overrides: Mapping[str, Any]) -> None:
    for key, value in overrides.items():
        *sections, name = key.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise BigrError(f"settings: {key} is not a setting; {section} holds a value, not a section")
        place[name] = value


def experiment_name(project: Path, flow_run_name: str, flow_run_id: str) -> str:
    """The flow run's name as git allows it; with the beginning of its id where another experiment has the name."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", flow_run_name).strip("-") or "run"
    return f"{name}-{flow_run_id[:8]}" if name in experiments(project) else name


def clone(project: Path, folder: Path, overrides: Mapping[str, Any]) -> None:
    """Make `folder` a copy of `project` with `overrides` in its params.yaml. A complete clone is left as it is.

    Raises `BigrError` where `project` is not a git repository of its own with a commit.
    """
    made = folder / _MADE
    if made.exists():
        return
    if not (project / ".git").exists():
        raise BigrError(f"{project}: settings can be overridden in a git repository only; run `git init` and commit")
    try:
        _git(project, "rev-parse", "--verify", "HEAD")
    except BigrError:
        raise BigrError(
            f"{project}: settings can be overridden only after the first commit; run `git commit`"
        ) from None
    values = merge(config.read(project / "params.yaml"), overrides)
    files = _files(project, values)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700)  # what it copies may hold passwords
    _git(project, "clone", "--quiet", "--local", ".", str(folder))
    for key, fallback in (("user.name", "Prefect"), ("user.email", "prefect@localhost")):
        _git(folder, "config", key, _git(project, "config", "--default", fallback, key).strip())
    _copy_changes(project, folder, files)
    _share_cache(project, folder)
    for file in files:
        if not (folder / file).exists():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).symlink_to(project / file)
    _write_params(folder / "params.yaml", overrides)
    made.touch()


def change(project: Path, folder: Path, overrides: Mapping[str, Any]) -> None:
    """Give a clone other settings: those of `project` with `overrides`."""
    shutil.copy2(project / "params.yaml", folder / "params.yaml")
    _write_params(folder / "params.yaml", overrides)


def save(project: Path, folder: Path, name: str, stages: list[str]) -> None:
    """Make what `stages` produced in the clone an experiment of `project`, and remove the clone."""
    keep(project, folder, name, stages)
    remove(folder)


def keep(project: Path, folder: Path, name: str, stages: list[str]) -> None:
    """Make what `stages` produced in the clone an experiment of `project`; the clone stays."""
    output(folder, command("dvc"), "exp", "save", "--force", "--name", name, *stages)
    ref = _git(folder, "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}").split()[0]
    _git(project, "fetch", "--quiet", "--no-write-fetch-head", str(folder), f"+{ref}:{ref}")


def experiments(project: Path) -> set[str]:
    """The names of the experiments that `project` has."""
    refs = _git(project, "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    return {ref.rsplit("/", 1)[-1] for ref in refs}


def remove(folder: Path) -> None:
    """Remove a clone; its copies of passwords first, so that a kill meanwhile leaves none."""
    for file in (_LOCAL, _MADE):
        (folder / file).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _files(project: Path, values: Mapping[str, Any]) -> list[str]:
    """Existing relative files that settings name and neither git nor a stage provides: the clone links them."""
    outs = [out for spec in dvcfile.stages(project, values).values() for out in spec.outs]
    return [
        file
        for file in config.validate(dict(values)).files.values()
        if not Path(file).is_absolute()
        and (project / file).exists()
        and not any(Path(file).is_relative_to(out) for out in outs)
        and not _git(project, "ls-files", "--", file)
    ]


def _copy_changes(project: Path, folder: Path, linked: list[str]) -> None:
    """Copy what differs from the last commit, new files included, and remove what was deleted."""
    changed = _git(project, "diff", "--name-only", "-z", "HEAD") + _git(
        *(project, "ls-files", "--others", "--exclude-standard", "-z")
    )
    for name in filter(None, changed.split("\0")):
        source, target = project / name, folder / name
        if any(Path(name).is_relative_to(path) for path in linked) or source.is_dir():
            continue
        target.unlink(missing_ok=True)
        if source.is_symlink() or source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def _share_cache(project: Path, folder: Path) -> None:
    """Let the clone use the project's cache, and check out the outputs: by links, as `.dvc/config` says."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(project / _LOCAL)
    cache = project / output(project, command("dvc"), "cache", "dir").strip()
    own = {"cache": {"dir": cache.resolve()}, "core": {"site_cache_dir": (folder / ".dvc/tmp/site").resolve()}}
    for section, values in own.items():
        if not settings.has_section(section):
            settings.add_section(section)
        for key, value in values.items():
            settings.set(section, key, str(value))
    (folder / _LOCAL).unlink(missing_ok=True)
    with os.fdopen(os.open(folder / _LOCAL, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        settings.write(file)
    output(folder, command("dvc"), "checkout", "--quiet", "--force", "--allow-missing")


def _write_params(path: Path, overrides: Mapping[str, Any]) -> None:
    with dvcfile.edited(path) as values:
        _lay_over(values, overrides)


def _git(folder: Path, *words: str) -> str:
    return output(folder, "git", *words)
