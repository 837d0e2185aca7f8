"""What DVC recorded: each execution of a stage with the hashes of what it read and wrote, and its settings.

Three places hold such records, asked in this order: dvc.lock (in the folder, or at a revision), DVC's cache of runs
(every execution on this machine, also those that nobody committed), and dvc.lock in the whole history of git.
"""

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from bigr.config import read
from bigr.pipeline import dvcfile
from bigr.runtime.dotted_keys import flatten
from bigr.runtime.errors import BigrError
from bigr.runtime.paths import is_code

LOCK = "dvc.lock"
_DIR = ".dir"


@dataclass(frozen=True)
class Content:
    """One version of a file or folder. size: bytes; files: in a folder; None where that is not recorded."""

    path: str
    md5: str
    size: int | None = None
    files: int | None = None

    @property
    def is_code(self) -> bool:
        """Whether it is this project's code rather than data."""
        return is_code(self.path)


@dataclass(frozen=True)
class Record:
    """One execution of a stage. settings: dotted key → value; source: where DVC has it, for people."""

    stage: str
    command: str
    deps: tuple[Content, ...]
    outs: tuple[Content, ...]
    settings: Mapping[str, Any]
    source: str

    def out(self, path: str) -> Content | None:
        """The output `path`, or the folder among the outputs that holds it."""
        return next((out for out in self.outs if Path(path).is_relative_to(out.path)), None)


class Records:
    """DVC's records of the project at `root`; `revision` (a commit, a branch, an experiment) names another dvc.lock.

    Raises `BigrError` where there is no such revision, or no dvc.lock in it.
    """

    def __init__(self, root: Path, revision: str | None = None) -> None:
        self.root = root
        if revision is None:
            path = root / LOCK
            self.where = LOCK
            self.lock = parse(path.read_text(encoding="utf-8"), LOCK) if path.is_file() else []
        else:
            commit = resolve(root, revision)
            self.where = f"{LOCK} at {revision}"
            self.lock = at(root, commit, self.where)
            if not self.lock:
                raise BigrError(f"--rev: {revision} has no {LOCK}; commit it after `dvc repro`, or name another one")

    def writer(self, path: str, md5: str) -> Record | None:
        """The execution that wrote `path` with the hash `md5`: of this dvc.lock, else of the newest record."""
        return next((r for r in self._mentioning(md5) if any((o.path, o.md5) == (path, md5) for o in r.outs)), None)

    def find(self, prefix: str) -> list[Content]:
        """Outputs whose hash begins with `prefix`, each version once, those of this dvc.lock first."""
        outs = (out for record in self._mentioning(prefix) for out in record.outs)
        return list({(out.path, out.md5): out for out in outs if out.md5.startswith(prefix)}.values())

    def holding(self, md5: str) -> list[tuple[Content, str]]:
        """Folders among the outputs that hold a file with the hash `md5`, with its path in them."""
        outs = {(out.path, out.md5): out for record in [*self.lock, *self._run_cache("")] for out in record.outs}
        return [(out, name) for out in outs.values() for name, held in self.listing(out.md5).items() if held == md5]

    def holder(self, part: Content) -> Content | None:
        """The folder among the outputs that `part` is inside of, in the version that has it so."""
        for record in [*self.lock, *self._run_cache("")]:
            out = record.out(part.path)
            if out and out.path != part.path and self._holds(out, part):
                return out
        return None

    def _holds(self, folder: Content, part: Content) -> bool:
        name, listing = os.path.relpath(part.path, folder.path), self.listing(folder.md5)
        inside = [
            {"md5": md5, "relpath": os.path.relpath(held, name)}
            for held, md5 in sorted(listing.items())
            if Path(held).is_relative_to(name)
        ]
        as_folder = hashlib.md5(json.dumps(inside, sort_keys=True).encode()).hexdigest() + _DIR
        return part.md5 in (listing.get(name), as_folder)

    def listing(self, md5: str) -> dict[str, str]:
        """Path → hash of the files of a folder, as far as DVC's cache has it; nothing for a file."""
        place = self._cache / "files" / "md5" / md5[:2] / md5[2:]
        if not (md5.endswith(_DIR) and place.is_file()):
            return {}
        return {entry["relpath"]: entry["md5"] for entry in json.loads(place.read_text(encoding="utf-8"))}

    def _mentioning(self, text: str) -> Iterator[Record]:
        yield from self.lock
        yield from self._run_cache(text)
        for commit in git(self.root, "log", "--all", "--format=%H", f"-S{text}", "--", LOCK).split():
            yield from at(self.root, commit, f"{LOCK} at {commit[:7]}")

    @cached_property
    def _cache(self) -> Path:
        return dvcfile.cache_folder(self.root)

    def _run_cache(self, text: str) -> Iterator[Record]:
        """Records of DVC's cache of runs, whose files contain `text`, the newest first."""
        for file in self._runs:
            content = file.read_text(encoding="utf-8")
            if text in content:
                for record in parse(f"stages:\n  run:\n{_indent(content)}", "DVC's cache of runs"):
                    yield replace(record, stage=next((n for o in record.outs if (n := self._names.get(o.path))), "?"))

    @cached_property
    def _names(self) -> dict[str, str]:
        """Output → stage: DVC's cache of runs knows no names of stages."""
        return {out.path: record.stage for record in self.lock for out in record.outs} | self.outs

    @cached_property
    def outs(self) -> dict[str, str]:
        """Output → stage, as dvc.yaml has them."""
        stages = dvcfile.stages(self.root, read(self.root / "params.yaml"))
        return {os.path.normpath(out): name for name, stage in stages.items() for out in stage.outs}

    @cached_property
    def _runs(self) -> list[Path]:
        files = [path for path in (self._cache / "runs").glob("*/*/*") if path.is_file()]
        return sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)


def parse(text: str, source: str) -> list[Record]:
    """The records in the text of a dvc.lock. Raises `BigrError` where it is none."""
    try:
        stages = (YAML(typ="safe", pure=True).load(text) or {}).get("stages") or {}
        return [_record(str(name), stage, source) for name, stage in stages.items()]
    except (YAMLError, AttributeError, KeyError, TypeError):
        raise BigrError(f"{source}: not a lock file of DVC's; `dvc repro` writes it anew") from None


def _record(name: str, stage: Mapping[str, Any], source: str) -> Record:
    command = stage["cmd"] if isinstance(stage["cmd"], str) else " && ".join(stage["cmd"])
    settings: dict[str, Any] = {}
    for values in (stage.get("params") or {}).values():
        settings |= flatten(values)
    return Record(name, command, _contents(stage.get("deps")), _contents(stage.get("outs")), settings, source)


def _contents(entries: Iterable[Mapping[str, Any]] | None) -> tuple[Content, ...]:
    return tuple(
        Content(os.path.normpath(entry["path"]), entry["md5"], entry.get("size"), entry.get("nfiles"))
        for entry in entries or []
        if "md5" in entry
    )


def _indent(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def resolve(root: Path, revision: str) -> str:
    """The commit that a revision of git, or an experiment of DVC, names. Raises `BigrError` for neither."""
    found = git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip()
    if not found:
        refs = git(root, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines()
        found = next((ref.split()[0] for ref in refs if re.search(rf"/{re.escape(revision)}$", ref)), "")
    if not found:
        raise BigrError(f"--rev: {revision} is neither a revision of git nor an experiment (`git log`, `dvc exp show`)")
    return found


def at(root: Path, commit: str, source: str) -> list[Record]:
    """The records of dvc.lock at a commit; none where it has none."""
    return parse(git(root, "show", f"{commit}:./{LOCK}"), source)


def git(root: Path, *words: str) -> str:
    """What git says in the project; nothing where it fails, or where there is no git."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
