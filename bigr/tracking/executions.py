"""The execution of the pipeline that a stage belongs to, its process, and its commit.

One execution is one parent run. Its id is BIGR_EXECUTION where that is set (the Prefect flow sets it); otherwise the
number and start time of the nearest `dvc` process above this one; otherwise those of this process.
"""

import os
import socket
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from bigr.runtime.masking import masked


@dataclass(frozen=True)
class Execution:
    """id: the same for all stages of one execution; name: of the parent run; command: the command line."""

    id: str
    name: str
    command: str


def current() -> Execution:
    """The execution that this process belongs to."""
    process = dvc_above() or psutil.Process()
    name = os.environ.get("BIGR_EXECUTION_NAME") or os.environ.get("DVC_EXP_NAME")
    started = datetime.fromtimestamp(process.create_time())
    return Execution(
        id=os.environ.get("BIGR_EXECUTION") or _identity(process),
        name=name or f"pipeline {started:%Y-%m-%d %H:%M:%S}",
        command=masked(" ".join(Path(arg).name if i < 2 else arg for i, arg in enumerate(process.cmdline()))),
    )


def is_experiment(root: Path) -> bool:
    """Whether this execution is an experiment of DVC, or runs in a copy of the project for one."""
    return "DVC_EXP_NAME" in os.environ or ".dvc" in (folder.name for folder in root.absolute().parents)


def dvc_above() -> psutil.Process | None:
    """The nearest `dvc` process above this one."""
    for process in psutil.Process().parents():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if any(Path(word).name == "dvc" for word in words[:2]) or words[1:3] == ["-m", "dvc"]:
            return process
    return None


def _identity(process: psutil.Process) -> str:
    # Its start is counted from the machine's: in the time of day it would move whenever the clock is set.
    return f"{socket.gethostname()}:{process.pid}:{process.create_time() - psutil.boot_time():.2f}"


def process_tag() -> str:
    """This process as host:number:start, by which `is_dead` finds whether it has ended."""
    return _identity(psutil.Process())


def is_dead(tag: str) -> bool:
    """Whether the process that `process_tag` named has ended; False where it belongs to another machine."""
    host, pid, _ = tag.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        return _identity(psutil.Process(int(pid))) != tag
    except psutil.NoSuchProcess:
        return True


def git_tags(root: Path) -> dict[str, str]:
    """The commit checked out at `root`, and whether tracked files differ from it; empty outside a git repository."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "git.dirty": str(dirty).lower()}
