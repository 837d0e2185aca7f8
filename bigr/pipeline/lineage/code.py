"""The code that a stage ran with, compared with the commit that it ran at and with the folder now."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bigr.pipeline import dvcfile
from bigr.pipeline.lineage.chain import Step
from bigr.runtime.errors import BigrError


@dataclass(frozen=True)
class CodeVersion:
    """A file or package of code. md5: DVC's hash; as_committed: whether the run's commit has this version, None where
    that is unknown; as_now: whether the folder has it."""

    path: str
    md5: str
    as_committed: bool | None
    as_now: bool


def compare(root: Path, step: Step) -> list[CodeVersion]:
    """All code that the step's execution ran with, as dvc.yaml named it."""
    paths = [code.path for code in step.code]
    now = dvcfile.content_hashes(root, [path for path in paths if (root / path).exists()])
    committed = None
    if step.run and step.run.commit:
        with suppress(BigrError):  # this repository may lack the commit
            committed = dvcfile.content_hashes_at(root, step.run.commit, paths)
    return [
        CodeVersion(
            code.path,
            code.md5,
            as_committed=None if committed is None else committed.get(code.path) == code.md5,
            as_now=now.get(code.path) == code.md5,
        )
        for code in step.code
    ]
