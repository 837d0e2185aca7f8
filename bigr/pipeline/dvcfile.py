"""The stages as dvc.yaml describes them, and DVC's hashes of files.

Paths are as dvc.yaml writes them, with `${…}` filled in from the settings; a hash is what dvc.lock would hold for the
path: MD5 of a file's bytes, or of a folder's listing (`….dir`). DVC's own library computes them and remembers them in
DVC's cache of file states, so that what `dvc repro` has hashed is not read again.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigr.config import read
from bigr.runtime.errors import BigrError
from bigr.runtime.extras import require
from bigr.runtime.paths import is_code, is_url

if TYPE_CHECKING:
    from dvc.repo import Repo

require("pipeline", "reading dvc.yaml")

HASHES = ("md5", "etag", "checksum")
"""What dvc.lock calls the hash of a file or a folder; the latter two of a file at a URL."""


@dataclass(frozen=True)
class StageSpec:
    """One stage of dvc.yaml: paths that it reads (code and data), keys of params.yaml, paths that it writes."""

    name: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]
    about: str = ""
    """What it does, in words."""

    @property
    def data(self) -> tuple[str, ...]:
        """The deps that are not this project's code."""
        return tuple(dep for dep in self.deps if not is_code(dep))

    def reading(self, paths: Iterable[str]) -> "StageSpec":
        """This stage with `paths` among its deps: what settings name and dvc.yaml does not, whose deps cannot be null.

        A path that is among them already is not added again.
        """
        return replace(self, deps=tuple(dict.fromkeys((*self.deps, *paths))))


def stages(root: Path, values: Mapping[str, Any]) -> dict[str, StageSpec]:
    """Every stage of `root`/dvc.yaml, in its order. `values`: params.yaml as plain values. Raises `BigrError`."""
    path = root / "dvc.yaml"
    if not path.is_file():
        raise BigrError(f"{path}: no such file; run in the project's folder")
    described = read(path).get("stages")
    if not isinstance(described, dict):
        raise BigrError("dvc.yaml: has no section `stages`")
    return {name: _spec(name, stage, values) for name, stage in described.items()}


def _spec(name: str, stage: Any, values: Mapping[str, Any]) -> StageSpec:
    def paths(*keys: str) -> tuple[str, ...]:
        entries = [entry for key in keys for entry in stage.get(key) or []]
        names = [next(iter(entry)) if isinstance(entry, dict) else str(entry) for entry in entries]
        return tuple(dict.fromkeys(_fill(text, values, name) for text in names))

    outs = paths("outs", "metrics", "plots")
    return StageSpec(name, paths("deps"), paths("params"), outs, str(stage.get("desc") or ""))


def _fill(text: str, values: Mapping[str, Any], stage: str) -> str:
    def value(match: re.Match[str]) -> str:
        return str(setting(values, match[1].strip(), f"dvc.yaml: stage {stage}"))

    return re.sub(r"\$\{([^}]+)\}", value, text)


def setting(values: Mapping[str, Any], key: str, where: str = "dvc.yaml") -> Any:
    """The value, or the section, at a dotted key. Raises `BigrError` that starts with `where`."""
    found: Any = values
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise BigrError(f"{where} names the setting {key}, which params.yaml does not have")
        found = found[part]
    return found


def edited(path: Path) -> AbstractContextManager[dict[str, Any]]:
    """The values of a YAML file, to be changed in the block; written as `dvc exp run -S` does: other lines stay."""
    from dvc.utils.serialize import modify_yaml

    changed: AbstractContextManager[dict[str, Any]] = modify_yaml(path)
    return changed


def check_inputs(root: Path, spec: StageSpec, pipeline: Mapping[str, StageSpec]) -> None:
    """Raise `BigrError` for the first dep of the stage that does not exist."""
    for dep in spec.deps:
        if is_url(dep) or (root / dep).exists():
            continue
        made = any(Path(dep).is_relative_to(out) for other in pipeline.values() for out in other.outs)
        remedy = f"run `dvc repro {spec.name}`" if made else "put it there, or name another path in params.yaml"
        raise BigrError(f"stage {spec.name} reads {dep}, which does not exist; {remedy}")


def can_depend_on(url: str) -> bool:
    """Whether DVC knows this kind of URL: `s3://`, but not each that fsspec opens."""
    from dvc.config_schema import REMOTE_SCHEMAS

    kind = url.partition("://")[0]
    return kind in REMOTE_SCHEMAS and kind != "remote"


def content_hashes(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """DVC's hash of each path below `root` (or absolute); of a URL, of what its storage says of it.

    Raises `BigrError` where `root` is no DVC project.
    """
    from dvc.fs import localfs

    with _repo(root) as repo:
        return {
            path: _of_url(repo, path) if is_url(path) else _hash_of(repo, localfs, str((root / path).absolute()))
            for path in paths
        }


def _of_url(repo: "Repo", url: str) -> str:
    """DVC's hash of a URL among the deps of dvc.yaml, asked for anew; of another, a hash of the address alone.

    Its storage gives it, and the file is not read. dvc.lock has it only once the stage has run.
    """
    dep = next((dep for stage in repo.index.stages for dep in stage.deps if dep.def_path == url), None)
    if dep is None:
        return hashlib.sha256(url.encode()).hexdigest()
    try:
        return str(dep.get_hash().value)
    except Exception as error:  # each kind of storage has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BigrError(f"{url} cannot be read ({reason}); correct shards.source, or the credentials") from None


def content_hashes_at(root: Path, revision: str, paths: Iterable[str]) -> dict[str, str]:
    """DVC's hash of each path below `root` as a revision has it; without those that it lacks. Raises like `read_at`."""
    with _at(root, revision) as repo:
        places = {path: repo.fs.join(repo.root_dir, path) for path in paths}
        return {path: _hash_of(repo, repo.fs, place) for path, place in places.items() if repo.fs.exists(place)}


def read_at(root: Path, revision: str, path: str) -> str:
    """The text of a file as a revision of git, or an experiment of DVC, has it; empty where it has no such file.

    Raises `BigrError` where there is no such revision, or `root` is no DVC project.
    """
    with _at(root, revision) as repo:
        place = repo.fs.join(repo.root_dir, path)
        return str(repo.fs.read_text(place, encoding="utf-8")) if repo.fs.exists(place) else ""


def _hash_of(repo: "Repo", fs: Any, path: str) -> str:
    from dvc_data.hashfile.build import build

    return str(build(repo.cache.local, path, fs, "md5", ignore=repo.dvcignore, dry_run=True)[2].hash_info.value)


@contextmanager
def _at(root: Path, revision: str) -> Iterator["Repo"]:
    from dvc.repo.brancher import switch
    from dvc.scm import SCMError
    from scmrepo.exceptions import SCMError as GitError

    with _repo(root) as repo:
        try:
            with switch(repo, revision):
                yield repo
        except (SCMError, GitError):  # unknown, there is no git repository, or it has no commit
            raise BigrError(
                f"--rev: {revision} is neither a revision of git nor an experiment (`git log`, `dvc exp show`)"
            ) from None


def cache_folder(root: Path) -> Path:
    """The folder of DVC's cache: contents of files, and records of runs. Raises `BigrError` as `content_hashes`."""
    with _repo(root) as repo:
        return Path(repo.cache.legacy.path)


def _repo(root: Path) -> "Repo":
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        return Repo(str(root))
    except NotDvcRepoError:
        raise BigrError(f"{root}: not a DVC project (it has no .dvc folder); run `dvc init` there") from None
    except SCMError:  # DVC's settings say that git holds the project: a copy without its history, say
        remedy = "run `git init` there, or `dvc config core.no_scm true`"
        raise BigrError(f"{root}: not a git repository, as DVC expects; {remedy}") from None


def outdated(root: Path, names: Collection[str]) -> list[str]:
    """Those stages whose inputs, settings or outputs differ from dvc.lock.

    Raises `BigrError` where `root` is no DVC project, or another DVC process holds its lock.
    """
    from dvc.exceptions import DvcException

    try:
        with _repo(root) as repo:
            targets = [f"{root.absolute() / 'dvc.yaml'}:{name}" for name in names]
            changed = {stage.rpartition(":")[2] for stage in repo.status(targets=targets)}
            return [name for name in names if name in changed]
    except DvcException as error:
        raise BigrError(f"DVC: {' '.join(str(error).split())}") from error


def fingerprint(spec: StageSpec, values: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    """SHA-256 over all that the stage's result depends on: the hashes of its deps, the values of its params."""
    named = {
        "deps": {dep: hashes[dep] for dep in spec.deps},
        "params": {key: setting(values, key) for key in spec.params},
    }
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
