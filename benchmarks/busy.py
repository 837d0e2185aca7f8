"""How much a busy process beside it slows this one down, by how OpenMP's threads wait for each other.

    python benchmarks/busy.py [params.yaml]

Runs benchmarks/speed.py alone and beside a process that computes without end. `spin`:
OMP_WAIT_POLICY=ACTIVE; `sleep`: PASSIVE; `bigr`: what `bigr` and all that it starts run with, unless the user sets one
of these variables; `one`: one thread.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bigr.cli.program import WAITING

WAYS = {
    "spin": {"OMP_WAIT_POLICY": "ACTIVE"},
    "sleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "bigr": WAITING,
    "one": {"OMP_NUM_THREADS": "1"},
}
SPEED = Path(__file__).with_name("speed.py")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("params", nargs="?", default="params.yaml", help="the settings")
    params = parser.parse_args().params
    for busy in (0, 1):
        for name, way in WAYS.items():
            with busy_processes(busy):
                done = subprocess.run(
                    [sys.executable, SPEED, params],
                    env={key: value for key, value in os.environ.items() if key not in WAITING} | way,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            if done.returncode:
                sys.exit(done.returncode)
            for line in done.stdout.splitlines():
                print(f"{'beside one busy process' if busy else 'alone':24} {name:6} {line}", flush=True)


if __name__ == "__main__":
    main()
