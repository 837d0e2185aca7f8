"""Programs in several processes of one group, as torchrun starts them, on the CPU."""

import os
import socket
import subprocess

from tests import preloaded
from tests.worlds import ROOT


def run_processes(count: int, text: str, *words: str, statuses: tuple[int, ...] = ()) -> None:
    """Run a program, which gets the words, in `count` processes of one group, and end those that hang.

    statuses: the exit statuses that are expected, 0 by default.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = os.environ | group | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {preloaded.VARIABLE: preloaded.start()}
    processes = [
        subprocess.Popen(
            preloaded.python(text, *words), cwd=ROOT, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(count)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == list(statuses or [0] * count)
    finally:
        for process in processes:
            process.kill()
            process.wait()
