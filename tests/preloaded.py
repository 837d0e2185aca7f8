"""`bigr` for tests of how stages work together, in a fork of a process that has loaded torch and MLflow.

A stage of a tiny project spends nearly all of its time in loading them. The command `CLIENT` asks the process at the
other end of the socket PRELOADED_BIGR to run `bigr` in a fork with its own arguments, environment, folder and standard
streams, and ends as that ends. Without such a process it is `python -m bigr`. The project's own code is never loaded
before the fork.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import psutil

VARIABLE = "PRELOADED_BIGR"
NO_FORK = "PRELOADED_NO_FORK"
"""A variable: which commands, with commas and without `bigr`, start as users start them."""
LOADED = (
    "torch._dynamo",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.system_metrics.system_metrics_monitor",
    "sklearn.linear_model",
    "webdataset",
)

CLIENT = f"""#!{sys.executable} -ISs
import json, os, signal, socket, sys

asked = socket.socket(socket.AF_UNIX)
try:
    none = " ".join(sys.argv[1:]) in os.environ.get("{NO_FORK}", "").split(",")
    asked.connect(not none and os.environ.get("{VARIABLE}") or "/nonexistent")
except OSError:
    os.execv({sys.executable!r}, [{sys.executable!r}, "-m", "bigr", *sys.argv[1:]])
socket.send_fds(asked, [b"x"], [0, 1, 2])
request = {{"words": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ), "process": os.getpid()}}
asked.sendall(json.dumps(request).encode() + b"\\n")
answers = asked.makefile()
fork = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(fork, number))
code = os.waitstatus_to_exitcode(int(answers.readline() or signal.SIGKILL))
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@cache
def start() -> str:
    """Start the process, once for each process of this test run: its socket."""
    path = str(Path(tempfile.mkdtemp(prefix="bigr-tests-")) / "socket")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PYTEST_"))}
    own = {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, path], env=kept | own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(_stop, process, path)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return path


def environment(folder: Path) -> Path:
    """A copy of this environment in `folder`, by links, whose `bigr` is `CLIENT`: its interpreter.

    For programs that look for `bigr` beside their own interpreter. This one, where it is not in an environment.
    """
    own = Path(sys.prefix)
    if not (own / "pyvenv.cfg").exists():
        return Path(sys.executable)
    (folder / "bin").mkdir(parents=True)
    shutil.copy(own / "pyvenv.cfg", folder)
    (folder / "lib").symlink_to(own / "lib")
    for program in (own / "bin").iterdir():
        copy, shebang = folder / "bin" / program.name, f"#!{own}/".encode()
        if program.is_file() and program.read_bytes().startswith(shebang):
            copy.write_bytes(program.read_bytes().replace(shebang, f"#!{folder}/".encode(), 1))
            copy.chmod(0o755)
        else:
            copy.symlink_to(program.resolve())
    (folder / "bin" / "bigr").write_text(CLIENT)
    return folder / "bin" / Path(sys.executable).name


def _stop(process: "subprocess.Popen[str]", path: str) -> None:
    assert process.stdin is not None
    process.stdin.close()  # it ends then, and so it does where this process is killed
    process.wait()
    Path(path).parent.rmdir()


def serve(path: str) -> None:
    """Answer requests until standard input ends; return in each fork, ready to run `bigr`."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    forks: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as waiting:
        waiting.register(sys.stdin.fileno(), selectors.EVENT_READ)
        waiting.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj == sys.stdin.fileno():
                    for number in forks:
                        os.kill(number, signal.SIGKILL)
                    Path(path).unlink()
                    return sys.exit(0)
                if key.fileobj is listener:
                    asked = listener.accept()[0]
                    fds = socket.recv_fds(asked, 1, 3)[1]
                    request = json.loads(asked.makefile().readline())
                    if (number := os.fork()) == 0:
                        listener.close()
                        return become(fds, **request)
                    for fd in fds:
                        os.close(fd)
                    asked.sendall(f"{number}\n".encode())
                    forks[number] = asked
                    waiting.register(os.pidfd_open(number), selectors.EVENT_READ, number)
                    waiting.register(asked, selectors.EVENT_READ, -number)
                elif key.data < 0:  # the command was killed, or has read its answer
                    with contextlib.suppress(ProcessLookupError):
                        if -key.data in forks:
                            os.kill(-key.data, signal.SIGKILL)
                    waiting.unregister(key.fileobj)
                else:
                    status, asked = os.waitpid(key.data, 0)[1], forks.pop(key.data)
                    with contextlib.suppress(OSError):
                        asked.sendall(f"{status}\n".encode())
                    waiting.unregister(key.fileobj)
                    os.close(key.fd)


def become(fds: list[int], words: list[str], folder: str, environment: dict[str, str], process: int) -> None:
    """Take the streams, arguments, environment, folder and place among the processes of the command that asked."""
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
        os.close(fd)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["bigr", *words]
    sys.path[:0] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    parents, own = psutil.Process.parents, os.getpid()

    def of_the_command(self: psutil.Process) -> list[psutil.Process]:
        command = psutil.Process(process)
        return [command, *parents(command)] if self.pid == own else parents(self)

    psutil.Process.parents = of_the_command  # type: ignore[method-assign]


if __name__ == "__main__":
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()  # else a fork's collections would copy the memory of all that was loaded
    serve(sys.argv[1])
    runpy.run_module("bigr", run_name="__main__", alter_sys=True)
