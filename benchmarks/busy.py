"""How much busy processes beside it slow this one down, by how OpenMP's threads wait for each other.

    python -m benchmarks busy [params.yaml]

Runs `python -m benchmarks steps` alone and beside one and two processes that compute without end. `spin`:
OMP_WAIT_POLICY=ACTIVE; `sleep`: PASSIVE; `bigr`: what `bigr` and all that it starts run with, unless the user sets one
of these variables; `one`: one thread.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from bigr.cli.program import WAITING

WAYS = {
    "spin": {"OMP_WAIT_POLICY": "ACTIVE"},
    "sleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "bigr": WAITING,
    "one": {"OMP_NUM_THREADS": "1"},
}


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main(params: Annotated[Path, typer.Argument(help="The settings.")] = Path("params.yaml")) -> None:
    """Measure."""
    for busy in (0, 1, 2):
        for name, way in WAYS.items():
            with busy_processes(busy):
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks", "steps", str(params)],
                    env={key: value for key, value in os.environ.items() if key not in WAITING} | way,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            if done.returncode:
                sys.exit(done.returncode)
            for line in done.stdout.splitlines():
                print(f"{f'beside {busy} busy' if busy else 'alone':14} {name:6} {line}", flush=True)
