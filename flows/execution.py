"""Commands run by the flow in processes of their own; above all one stage, executed by DVC.

What DVC and the stage print goes line by line to a logger. A stage ends in one of three ways: an `Outcome` (it ran, or
there was nothing to do), `StageKilled` (a signal ended it: worth another try), `StageFailed` (it would fail again).
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bigr.runtime.errors import EXIT_STOPPED, EXIT_USER_ERROR, BigrError
from bigr.runtime.masking import masked
from flows import guard

RETRY = "press Retry on the run's page to go on from the last checkpoint"
"""The remedy in the message of a killed run."""
_EXIT = re.compile(r"failed to run: .*, exited with (-?\d+)")
_DVC_ERROR = re.compile(r"ERROR: (?:failed to reproduce '[^']*': )?(.*)")
_NOT_LAST_WORDS = re.compile(r"> |\d\d:\d\d:\d\d ")  # DVC naming the command, the stage's log
_TIME = re.compile(r"^\d\d:\d\d:\d\d ")
_SKIPPED = re.compile(r"Stage '[^']*' (didn't change|is cached)")
_RUNNING = re.compile(r"Running stage '([^']*)'")


@dataclass(frozen=True)
class Outcome:
    """A stage that succeeded: `ran`, or `cached` where DVC had its result already; `seconds` of wall-clock time."""

    state: Literal["ran", "cached"]
    seconds: float


class StageFailed(Exception):
    """The stage would fail again. The message names the stage and is otherwise its own."""


class StageKilled(Exception):
    """A signal ended the stage: out of memory, a shutdown, or a user's kill."""


def command(program: str) -> str:
    """The path of a program of the running environment, which need not be on PATH."""
    return str(Path(sys.executable).parent / program)


def execute(
    stage: str,
    workspace: Path,
    environment: Mapping[str, str],
    force: bool,
    log: Callable[[str], None],
    *,
    upstream: bool = False,
) -> Outcome:
    """Bring one stage up to date in `workspace` with `dvc repro`.

    environment: added to this process's; force: run even if nothing changed; log: receives each line of output;
    upstream: bring up to date whatever the stage depends on, too.
    Raises `StageFailed` or `StageKilled`.
    """
    started = time.monotonic()
    words = [command("dvc"), "repro", stage]
    if not upstream:
        words.append("--single-item")
    ran, skipped, exited, refused = False, False, 0, ""
    said: list[str] = []
    with started_in(workspace, [*words, "--force"] if force else words, environment) as process:
        for line in lines(process):
            log(line)
            if match := _RUNNING.match(line):
                ran, stage, said = True, match[1], []
            elif _SKIPPED.match(line):
                skipped = True
            elif match := _EXIT.search(line):
                exited = int(match[1])
            elif match := _DVC_ERROR.match(line):
                refused = match[1]
            elif not exited:
                said = [] if _NOT_LAST_WORDS.match(line) else [*said, line]
        status = process.wait()
    if status == 0:
        return Outcome("cached" if skipped and not ran else "ran", time.monotonic() - started)
    if number := killer(exited) or killer(status):
        raise StageKilled(f"{stage}: killed by {signal.Signals(number).name}")
    if EXIT_STOPPED in (exited, status):
        raise StageKilled(f"{stage}: asked to end; its checkpoint is written")
    last_words = "; ".join(said if exited == EXIT_USER_ERROR else said[-1:])
    raise StageFailed(f"{stage}: {refused or last_words or f'failed with status {exited or status}'}")


@contextlib.contextmanager
def started_in(
    workspace: Path, words: Sequence[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """A running command of this project in `workspace`; no process that it starts outlives this context.

    What still runs at its end is asked to end, and has `guard.GRACE_S` seconds for it.
    """
    process = subprocess.Popen(
        [sys.executable, guard.__file__, *words],
        cwd=workspace,
        env={**os.environ, **environment, **_paths(workspace)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        guard.end_session(process.pid)
        process.wait()


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """What the command prints, line by line, without empty ones; passwords in URIs are masked, as Prefect keeps all."""
    assert process.stdout is not None
    yield from (masked(line.rstrip()) for line in process.stdout if line.rstrip())


def run_logged(
    name: str,
    workspace: Path,
    words: Sequence[str],
    environment: Mapping[str, str],
    log: Callable[[str], None],
    *,
    accepted: Collection[int] = (0,),
) -> list[str]:
    """Run a command of this project in `workspace`, each line of its output to `log`, and return the lines.

    accepted: exit statuses of success. Raises `StageKilled` and, with the last line, `StageFailed`.
    """
    said: list[str] = []
    with started_in(workspace, words, environment) as process:
        for line in lines(process):
            log(line)
            said.append(line)
        status = process.wait()
    if number := killer(status):
        raise StageKilled(f"{name}: killed by {signal.Signals(number).name}")
    if status not in accepted:
        raise StageFailed(f"{name}: {_TIME.sub('', said[-1]) if said else f'failed with status {status}'}")
    return said


def output(folder: Path, *words: str, **environment: str) -> str:
    """Standard output of a command run in `folder`. Raises `BigrError` with the last line of its error output."""
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C", **environment}
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]
        raise BigrError(masked(f"{Path(words[0]).name} {words[1]}: {said}"))
    return done.stdout


def _paths(workspace: Path) -> dict[str, str]:
    """The workspace's own code and this environment's programs come first, wherever they were started from."""
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": str(workspace),
        "PYTHONUNBUFFERED": "1",
    }


def killer(status: int) -> int:
    """The signal in an exit status, as Popen (−n) or a shell (128 + n) reports it; 0 for none."""
    number = -status if status < 0 else status - 128
    return number if number in set(signal.Signals) else 0
