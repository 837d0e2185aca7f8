"""The code that a stage ran with, beside the commit that it ran at and the folder as it is."""

import hashlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigr.lineage.chain import Step


@dataclass(frozen=True)
class Code:
    """A file of code. as_committed: it is so in the commit of the run, None where that is unknown; as_now: it is so in
    the folder."""

    path: str
    md5: str
    as_committed: bool | None
    as_now: bool


def compare(root: Path, step: Step) -> list[Code]:
    """Each file of code that the step's execution ran with."""
    committed = _committed(root, step.run.commit, [file.path for file in step.code]) if step.run else None
    return [
        Code(
            file.path,
            file.md5,
            committed.get(file.path) == file.md5 if committed is not None else None,
            _now(root / file.path) == file.md5,
        )
        for file in step.code
    ]


def _now(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest() if path.is_file() else ""


def _committed(root: Path, commit: str | None, paths: Sequence[str]) -> dict[str, str] | None:
    """Path → MD5 of the files as `commit` has them; None where this repository does not have the commit."""
    if commit is None:
        return None
    asked = "".join(f"{commit}:./{path}\n" for path in ("", *paths))
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "cat-file", "--batch"], input=asked.encode(), capture_output=True, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    answers = done.stdout
    found: list[str | None] = []
    for _ in ("", *paths):
        head, _, answers = answers.partition(b"\n")
        if head.endswith((b" missing", b" ambiguous")):
            found.append(None)
            continue
        size = int(head.split()[-1])
        found.append(hashlib.md5(answers[:size]).hexdigest())
        answers = answers[size + 1 :]
    if found[0] is None:  # the commit's own folder
        return None
    return {path: md5 for path, md5 in zip(paths, found[1:], strict=True) if md5}
