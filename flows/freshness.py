"""What DVC finds unchanged, asked once: a run with nothing to do then ends within seconds.

`dvc repro` takes a second or two for each stage, most of it to start. Here DVC compares all stages with dvc.lock in one
pass: code, settings, inputs (the folder of images file by file) and outputs.
"""

from collections.abc import Collection
from pathlib import Path

from bigr.pipeline.dvcfile import outdated
from bigr.runtime.errors import BigrError


def unchanged(workspace: Path, stages: Collection[str]) -> set[str]:
    """Those of `stages` that are as dvc.lock has them, until another stage writes what they read.

    None where DVC cannot tell: `dvc repro` then says why.
    """
    try:
        return set(stages) - set(outdated(workspace, stages))
    except BigrError:
        return set()
