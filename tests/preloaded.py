"""`bigr`, and `python -c`, in a fork of a process that has loaded torch and MLflow: for tests of several processes.

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
import time
from functools import cache
from pathlib import Path
from types import ModuleType

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
    program = [] if sys.argv[1:2] == ["-c"] else ["-m", "bigr"]
    os.execv({sys.executable!r}, [{sys.executable!r}, *program, *sys.argv[1:]])
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


given = ""
"""The socket of a process that all processes of this test run share, where the first of them has started one."""


def python(code: str, *words: str) -> list[str]:
    """`python -c code words…`, in a fork where the environment has `VARIABLE`."""
    return [sys.executable, "-ISs", "-c", CLIENT, "-c", code, *words]


def start() -> str:
    """The socket of the process, which is started where there is none yet; it answers."""
    path = given or begin()
    end = time.monotonic() + 300
    while not Path(path).exists():
        assert time.monotonic() < end, "the process that loads torch and MLflow does not answer"
        time.sleep(0.1)
    return path


@cache
def begin() -> str:
    """Start the process: its socket, which is there once it answers. It ends with this process."""
    path = str(Path(tempfile.mkdtemp(prefix="bigr-tests-")) / "socket")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PYTEST_"))}
    own = {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    process = subprocess.Popen([sys.executable, "-P", __file__, path], env=kept | own, stdin=subprocess.PIPE)
    atexit.register(_stop, process, path)
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
    client = folder / "bin" / "bigr"
    client.unlink()  # perhaps a link to this environment's own
    client.write_text(CLIENT)
    client.chmod(0o755)
    return folder / "bin" / Path(sys.executable).name


def _stop(process: "subprocess.Popen[bytes]", path: str) -> None:
    assert process.stdin is not None
    process.stdin.close()  # it ends then, and so it does where this process is killed
    process.wait()
    Path(path).parent.rmdir()


def serve(path: str) -> str:
    """Answer requests until standard input ends; return in each fork, ready to run it, what `become` returns."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen()
    Path(f"{path}.new").rename(path)
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


def become(fds: list[int], words: list[str], folder: str, environment: dict[str, str], process: int) -> str:
    """Take the streams, arguments, environment, folder and place among the processes of the command that asked.

    Returns the code of a `python -c`, an empty string for `bigr`.
    """
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
        os.close(fd)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words[:1] + words[2:] if words[:1] == ["-c"] else ["bigr", *words]
    sys.path[:0] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    parents, own = psutil.Process.parents, os.getpid()

    def of_the_command(self: psutil.Process) -> list[psutil.Process]:
        command = psutil.Process(process)
        return [command, *parents(command)] if self.pid == own else parents(self)

    psutil.Process.parents = of_the_command  # type: ignore[method-assign]
    return words[1] if words[:1] == ["-c"] else ""


if __name__ == "__main__":
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()  # else a fork's collections would copy the memory of all that was loaded
    if code := serve(sys.argv[1]):
        sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        runpy.run_module("bigr", run_name="__main__", alter_sys=True)
