"""Run a command that ends with the process that started it: `python -m flows.guard COMMAND…`.

This process leads a session of its own; its standard input is a pipe that the flow run holds open. When it closes,
however the flow run ended (also by `kill -9`), the session is terminated, so that no training keeps DVC's lock.
"""

import os
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 5.0
"""Time between the request to end and the kill."""
_ending = threading.Event()


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    _ending.set()
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """The command's exit status; 128 + n where signal n killed it, as in a shell."""
    # The group's SIGTERM is survived, to be followed up; children do not inherit this handler.
    signal.signal(signal.SIGTERM, lambda *_: None)
    watcher = threading.Thread(target=_end_with_parent, daemon=True)
    watcher.start()
    status = subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL)
    if _ending.is_set():  # the command has ended; its children may still run
        watcher.join()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
