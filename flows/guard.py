"""Run a command that ends with the process that started it: `python -m flows.guard COMMAND…`.

A killed flow run must not leave a training behind that holds DVC's lock. This process leads a session of its own; its
standard input is a pipe that the flow run holds open and never writes to. When the pipe closes, however the flow run
ended (also by `kill -9`), everything in the session is asked to end, and has time to: a training writes a checkpoint.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import psutil

GRACE_S = 300.0
"""Time between the request to end and the kill: torchrun gives its processes as much."""
_EVERY_S = 0.2
_ending = threading.Event()


def end_session(session: int) -> None:
    """End all processes of a session but this one, and those that they have started, in sessions of their own or not.

    They get SIGTERM. What is still there after `GRACE_S`, or at Ctrl-C, is killed.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(session, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    try:
        while _members(session) and time.monotonic() < deadline:
            time.sleep(_EVERY_S)
    finally:
        for process in _members(session):
            for below in [*_children(process), process]:
                with contextlib.suppress(psutil.Error):
                    below.kill()


def _members(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            theirs = os.getsid(process.pid) == session and process.pid != os.getpid()
            if theirs and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    _ending.set()
    end_session(os.getsid(0))


def main() -> int:
    """The command's exit status; 128 + n where signal n killed it, as in a shell."""
    # The group's SIGTERM is survived, to be followed up; children do not inherit this handler.
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    watcher = threading.Thread(target=_end_with_parent, daemon=True)
    watcher.start()
    status = subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL)
    # The command has ended; its children may still run, and who asked may not live to see their end.
    if _ending.is_set():
        watcher.join()
    elif asked.is_set():
        end_session(os.getsid(0))
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
