"""What DVC finds unchanged, asked once: a run with nothing to do then ends within seconds.

`dvc repro` takes a second or two for each stage, most of it to start. `dvc status` compares all stages with dvc.lock in
one go: code, settings, inputs (also the folder of images, file by file) and outputs.
"""

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from flows.execution import command


def unchanged(workspace: Path, stages: Iterable[str]) -> set[str]:
    """Those of `stages` that are as dvc.lock has them; none where DVC cannot tell, and `dvc repro` is to say why.

    That is so until another stage writes what they read.
    """
    done = subprocess.run(
        [command("dvc"), "status", "--json"],
        cwd=workspace,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    try:
        changed = json.loads(done.stdout) if done.returncode == 0 else None
    except ValueError:
        changed = None
    return set(stages) - set(changed) if isinstance(changed, dict) else set()
