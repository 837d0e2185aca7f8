"""A server of Postgres on loopback, for tests: Debian's, in a folder of its own, as a user who is not root."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)
MISSING = "" if PROGRAMS else "Postgres is not installed: apt-get install postgresql"
USER = "ada"


@contextmanager
def serving(*databases: str) -> Iterator[str]:
    """Start the server with these databases; the part of their URLs before the name, as `ada:…@127.0.0.1:5432`."""
    assert PROGRAMS
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="bigr-postgres-"))  # pytest's own can be entered by this user alone
    password, log = secrets.token_hex(16), folder / "log"
    (folder / "password").write_text(password)
    account = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}  # it refuses to run as root
    if account:
        for path in (folder, folder / "password"):
            shutil.chown(path, **account)
    common = [f"--username={USER}", f"--pwfile={folder}/password", "--auth=scram-sha-256", "--encoding=UTF8"]
    subprocess.run(
        [PROGRAMS / "initdb", "--no-sync", *common, folder / "data"], check=True, capture_output=True, **account
    )
    words = [PROGRAMS / "postgres", "-D", folder / "data", "-k", folder, "-p", str(port), "-c", "fsync=off"]
    with log.open("w") as output:
        server = subprocess.Popen(words, stdout=output, stderr=output, cwd=folder, **account)
    try:
        environment = os.environ | {"PGPASSWORD": password}
        where = ["-h", "127.0.0.1", "-p", str(port), "-U", USER]
        end = time.monotonic() + 60
        while subprocess.run([PROGRAMS / "pg_isready", *where], capture_output=True).returncode:
            assert server.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        for name in databases:
            subprocess.run([PROGRAMS / "createdb", *where, name], env=environment, check=True)
        yield f"{USER}:{password}@127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)
        shutil.rmtree(folder)
