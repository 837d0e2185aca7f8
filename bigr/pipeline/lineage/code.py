"""The code that a stage ran with, beside the commit that it ran at and the folder as it is."""

import hashlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigr.pipeline import dvcfile
from bigr.pipeline.lineage.chain import Step


@dataclass(frozen=True)
class Code:
    """A file or package of code. md5: DVC's hash; as_committed: it is so in the commit of the run, None where that is
    unknown; as_now: it is so in the folder."""

    path: str
    md5: str
    as_committed: bool | None
    as_now: bool


def compare(root: Path, step: Step) -> list[Code]:
    """All code that the step's execution ran with, as dvc.yaml named it."""
    paths = [code.path for code in step.code]
    committed = _committed(root, step.run.commit, paths) if step.run else None
    now = dvcfile.content_hashes(root, [path for path in paths if (root / path).exists()])
    return [
        Code(
            code.path,
            code.md5,
            committed.get(code.path) == code.md5 if committed is not None else None,
            now.get(code.path) == code.md5,
        )
        for code in step.code
    ]


def _committed(root: Path, commit: str | None, paths: Sequence[str]) -> dict[str, str] | None:
    """Path → DVC's hash of the files and folders as `commit` has them; None where this repository lacks the commit."""
    if commit is None:
        return None
    try:
        if not _git(root, "ls-tree", f"{commit}:./"):
            return None  # the commit knows no such folder
        listed = _git(root, "ls-tree", "-r", "-z", commit, "--", *paths).decode().split("\0")[:-1]
        blobs = {path: about.split()[2] for about, _, path in (line.partition("\t") for line in listed)}
        md5 = dict(zip(blobs, _md5s(root, list(blobs.values())), strict=True))
    except (OSError, subprocess.SubprocessError, ValueError):  # ValueError: a blob that a partial clone lacks
        return None
    return {path: found for path in paths if (found := _hash(path, md5))}


def _hash(path: str, md5: dict[str, str]) -> str | None:
    if path in md5:
        return md5[path]
    inside = [
        {"md5": md5[file], "relpath": file.removeprefix(f"{path}/")} for file in md5 if file.startswith(f"{path}/")
    ]
    listing = json.dumps(sorted(inside, key=lambda entry: entry["relpath"]), sort_keys=True)
    return f"{hashlib.md5(listing.encode()).hexdigest()}.dir" if inside else None


def _md5s(root: Path, blobs: Sequence[str]) -> list[str]:
    answers = _git(root, "cat-file", "--batch", asked="".join(f"{blob}\n" for blob in blobs))
    found = []
    for _ in blobs:
        head, _, answers = answers.partition(b"\n")
        size = int(head.split()[-1])
        found.append(hashlib.md5(answers[:size]).hexdigest())
        answers = answers[size + 1 :]
    return found


def _git(root: Path, *words: str, asked: str = "") -> bytes:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, input=asked.encode(), capture_output=True, check=True).stdout
