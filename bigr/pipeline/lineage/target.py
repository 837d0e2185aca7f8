"""Which artifact is meant: a path of the pipeline, a hash, a run of MLflow, a version in its registry, or a copy."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from bigr.pipeline import dvcfile
from bigr.pipeline.lineage.records import LOCK, Content, Records
from bigr.pipeline.lineage.runs import RecordedRun, Runs
from bigr.runtime.errors import BigrError

_PREFIX = "md5:"
_SHORTEST = 6
_MODEL = "models/bigr"
_MODEL_TAG = f"dvc.{_MODEL}"


@dataclass(frozen=True)
class NamedArtifact:
    """The start of a chain. run: the run that was named, if any; note: how it was found, if not by its path."""

    artifact: Content
    run: RecordedRun | None = None
    note: str = ""


def find(root: Path, text: str, records: Records, runs: Runs, *, revision: bool) -> list[NamedArtifact]:
    """The artifacts that `text` names. Raises `BigrError` where it names none, or a version that is not recorded.

    revision: paths mean the versions in `records`, whatever is in the folder.
    """
    if text.startswith(_PREFIX):
        return [NamedArtifact(_by_hash(text.removeprefix(_PREFIX).lower(), records, runs))]
    if re.fullmatch(r"[0-9a-f]{32}", text) and not (root / text).exists():
        return _by_run(text, records, runs)
    if match := re.fullmatch(r"models:/([^/@]+)/?(@[^/@]+|\d+)", text):
        return [_by_version(text, match[1], match[2], records, runs)]
    path = os.path.normpath(os.path.relpath(root / text, root))
    if revision:
        return [_recorded(path, records)]
    if (root / path).exists():
        return [_present(root, path, text, records, runs)]
    if any(record.out(path) for record in records.lock):
        found = _recorded(path, records)
        away = f"not in the folder now; `dvc checkout {found.artifact.path}` brings it"
        return [NamedArtifact(found.artifact, note="; ".join(filter(None, [found.note, away])))]
    raise BigrError(
        f"{text}: no such file, and no artifact in {records.where}; name a path, md5:HASH or a run of MLflow, "
        "or another version with --rev"
    )


def _by_hash(prefix: str, records: Records, runs: Runs) -> Content:
    if not re.fullmatch(rf"[0-9a-f]{{{_SHORTEST},32}}(\.dir)?", prefix):
        raise BigrError(f"{_PREFIX}{prefix}: not a hash of DVC; give at least {_SHORTEST} of its hexadecimal digits")
    found = {(content.path, content.md5): content for content in records.find(prefix)}
    for path, md5 in runs.find(prefix, _outs(records)):
        found.setdefault((path, md5), Content(path, md5))
    if not found:
        raise BigrError(f"{_PREFIX}{prefix}: neither DVC nor MLflow has an output with this hash")
    if len({md5 for _, md5 in found}) > 1:
        names = ", ".join(sorted(f"{path} {_PREFIX}{md5}" for path, md5 in found))
        raise BigrError(f"{_PREFIX}{prefix}: more than one artifact; give more digits: {names}")
    return next(iter(found.values()))


def _by_run(run_id: str, records: Records, runs: Runs) -> list[NamedArtifact]:
    found = runs.get(run_id)
    if not found and runs.trouble:
        raise BigrError(f"{run_id}: cannot be looked up: {runs.trouble}")
    if not found:
        raise BigrError(
            f"{run_id}: no run of a stage or of the pipeline in MLflow; for a hash, write {_PREFIX}{run_id}"
        )
    wrote = next((run for run in found if run.outs), None)  # of a whole execution, the last stage
    if wrote is None:
        raise BigrError(f"{run_id}: the run of {found[0].stage} ended {found[0].status} and wrote nothing")
    return [NamedArtifact(_known(path, md5, records), wrote) for path, md5 in wrote.outs.items()]


def _by_version(text: str, model: str, which: str, records: Records, runs: Runs) -> NamedArtifact:
    found = runs.version(model, which)
    if found is None or _MODEL_TAG not in found[1]:
        why = runs.trouble or "MLflow's registry has no such version of this pipeline"
        raise BigrError(f"{text}: {why}; `bigr promote` registers a finished model")
    number, tags = found
    return NamedArtifact(_known(_MODEL, tags[_MODEL_TAG], records), note=f"version {number} of {model} in the registry")


def _recorded(path: str, records: Records) -> NamedArtifact:
    out = next((out for record in records.lock if (out := record.out(path))), None)
    if out is None:
        known = ", ".join(out.path for record in records.lock for out in record.outs)
        raise BigrError(f"{path}: not an artifact of {records.where}, which has {known}")
    if out.path == path:
        return NamedArtifact(out)
    name = os.path.relpath(path, out.path)
    listing = records.listing(out.md5)
    if listing and not any(Path(held).is_relative_to(name) for held in listing):
        raise BigrError(f"{path}: not in {out.path} as {records.where} has it")
    return NamedArtifact(out, note=_inside(name, listing.get(name)))


def _present(root: Path, path: str, text: str, records: Records, runs: Runs) -> NamedArtifact:
    """The artifact with the content of the file or folder `path`, wherever it is; text: as the user named it."""
    outs = _outs(records)
    whole = next((out for out in outs if Path(path).is_relative_to(out)), path)
    md5 = dvcfile.content_hashes(root, [whole])[whole]
    if records.writer(whole, md5) or runs.writers(whole, md5):
        note = ""
        if whole != path:
            name = os.path.relpath(path, whole)
            note = _inside(name, records.listing(md5).get(name))
        if not any(out.md5 == md5 for record in records.lock if (out := record.out(whole))):
            note = "; ".join(filter(None, [note, f"not the version of {LOCK}"]))
        return NamedArtifact(_known(whole, md5, records), note=note)
    if whole != path:
        md5 = dvcfile.content_hashes(root, [path])[path]
    for content in records.find(md5):
        return NamedArtifact(content, note=f"{text} is a copy of it")
    for known, same in runs.find(md5, outs):
        return NamedArtifact(_known(known, same, records), note=f"{text} is a copy of it")
    for folder, name in records.holding(md5):
        return NamedArtifact(folder, note=f"{text} is a copy of a file in it: {name}, {_PREFIX}{md5}")
    remedy = f"; `dvc checkout {whole}` brings back the recorded one" if whole in outs else ""
    raise BigrError(
        f"{text}: neither DVC nor MLflow knows this content ({_PREFIX}{md5}): no stage wrote it, or it was changed "
        f"since{remedy}"
    )


def _inside(name: str, md5: str | None) -> str:
    return f"{name} is in it" + (f", {_PREFIX}{md5}" if md5 else "")


def _outs(records: Records) -> list[str]:
    return list(dict.fromkeys([*records.outs, *(out.path for record in records.lock for out in record.outs)]))


def _known(path: str, md5: str, records: Records) -> Content:
    """The content with its size, where DVC recorded that."""
    record = records.writer(path, md5)
    outs = record.outs if record else ()
    return next((out for out in outs if (out.path, out.md5) == (path, md5)), Content(path, md5))
