"""How much a busy process beside it slows this one down, with OpenMP's threads spinning and sleeping as they wait.

    python benchmarks/busy.py [params.yaml]

Runs benchmarks/speed.py alone and beside a process that computes without end, under each OMP_WAIT_POLICY. `bigr` and
all that it starts run with PASSIVE, unless the variable is set.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
        for policy in ("ACTIVE", "PASSIVE"):
            with busy_processes(busy):
                done = subprocess.run(
                    [sys.executable, SPEED, params],
                    env={**os.environ, "OMP_WAIT_POLICY": policy},
                    stdout=subprocess.PIPE,
                    text=True,
                )
            if done.returncode:
                sys.exit(done.returncode)
            for line in done.stdout.splitlines():
                print(f"{'beside one busy process' if busy else 'alone':24} {policy.lower():8} {line}", flush=True)


if __name__ == "__main__":
    main()
