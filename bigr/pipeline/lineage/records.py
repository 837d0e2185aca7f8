"""What DVC recorded: each execution of a stage with the hashes of what it read and wrote, and its settings.

Two places hold such records, asked in this order: dvc.lock (in the folder, or at a revision), and DVC's run cache
(every execution on this machine, whether committed or not).
"""

import json
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
from bigr.runtime.paths import is_code, normal

LOCK = "dvc.lock"


@dataclass(frozen=True)
class Content:
    """One version of a file or folder. size: in bytes; files: how many a folder has; None where not recorded."""

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
    """DVC's records of the project at `root`. revision: a commit, tag, branch or experiment, whose dvc.lock is meant.

    Raises `BigrError` where there is no such revision, or no dvc.lock in it.
    """

    def __init__(self, root: Path, revision: str | None = None) -> None:
        self.root = root
        if revision is None:
            path = root / LOCK
            self.where, text = LOCK, path.read_text(encoding="utf-8") if path.is_file() else ""
        else:
            self.where, text = f"{LOCK} at {revision}", dvcfile.read_at(root, revision, LOCK)
        stages = _parse(text, self.where).get("stages") or {}
        self.lock = [_record(name, stage, self.where) for name, stage in stages.items()]
        if revision is not None and not self.lock:
            raise BigrError(f"--rev: {revision} has no {LOCK}; commit it after `dvc repro`, or name another revision")

    def writer(self, path: str, md5: str) -> Record | None:
        """The execution that wrote `path` with the hash `md5`: of this dvc.lock, else the newest in the run cache."""
        return next((r for r in self._with_hash(md5) if any((o.path, o.md5) == (path, md5) for o in r.outs)), None)

    def find(self, prefix: str) -> list[Content]:
        """Outputs whose hash begins with `prefix`, each version once, those of this dvc.lock first."""
        outs = (out for record in self._with_hash(prefix) for out in record.outs)
        return list({(out.path, out.md5): out for out in outs if out.md5.startswith(prefix)}.values())

    def holding(self, md5: str) -> list[tuple[Content, str]]:
        """Folders among the outputs that hold a file with the hash `md5`, with its path in them."""
        outs = {(out.path, out.md5): out for record in self._with_hash("") for out in record.outs}
        return [(out, name) for out in outs.values() for name, held in self.listing(out.md5).items() if held == md5]

    def listing(self, md5: str) -> dict[str, str]:
        """Path → hash of the files of a folder, if DVC's cache has it; empty for a file."""
        place = self._cache / "files" / "md5" / md5[:2] / md5[2:]
        if not (md5.endswith(".dir") and place.is_file()):
            return {}
        return {entry["relpath"]: entry["md5"] for entry in json.loads(place.read_text(encoding="utf-8"))}

    @cached_property
    def outs(self) -> dict[str, str]:
        """Output → stage, as dvc.yaml has them."""
        stages = dvcfile.stages(self.root, read(self.root / "params.yaml"))
        return {normal(out): name for name, stage in stages.items() for out in stage.outs}

    def _with_hash(self, text: str) -> Iterator[Record]:
        """dvc.lock's records, then those of the run cache that contain `text`, the newest first."""
        yield from self.lock
        # The run cache has no names of stages.
        names = {out.path: record.stage for record in self.lock for out in record.outs} | self.outs
        for file in self._run_cache:
            content = file.read_text(encoding="utf-8")
            if text in content:
                source = "DVC's run cache"
                record = _record("?", _parse(content, source), source)
                yield replace(record, stage=next((names[out.path] for out in record.outs if out.path in names), "?"))

    @cached_property
    def _run_cache(self) -> list[Path]:
        files = [path for path in (self._cache / "runs").glob("*/*/*") if path.is_file()]
        return sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)

    @cached_property
    def _cache(self) -> Path:
        return dvcfile.cache_folder(self.root)


def _parse(text: str, source: str) -> Mapping[str, Any]:
    try:
        return dict(YAML(typ="safe", pure=True).load(text) or {})
    except (YAMLError, TypeError, ValueError):
        raise _malformed(source) from None


def _record(name: str, stage: Mapping[str, Any], source: str) -> Record:
    try:
        command = stage["cmd"] if isinstance(stage["cmd"], str) else " && ".join(stage["cmd"])
        settings: dict[str, Any] = {}
        for values in (stage.get("params") or {}).values():
            settings |= flatten(values)
        return Record(name, command, _contents(stage.get("deps")), _contents(stage.get("outs")), settings, source)
    except (AttributeError, KeyError, TypeError):
        raise _malformed(source) from None


def _contents(entries: Iterable[Mapping[str, Any]] | None) -> tuple[Content, ...]:
    return tuple(
        Content(normal(entry["path"]), str(found), entry.get("size"), entry.get("nfiles"))
        for entry in entries or []
        if (found := next((entry[key] for key in dvcfile.HASHES if key in entry), None))
    )


def _malformed(source: str) -> BigrError:
    return BigrError(f"{source}: not a lock file of DVC; remove it, and `dvc repro` writes it again")
