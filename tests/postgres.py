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


class Server:
    """A server with its files in `folder`. at: the part of its databases' URLs before the name, as
    `ada:…@127.0.0.1:5432`."""

    def __init__(self, folder: Path) -> None:
        assert PROGRAMS
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.folder, self._password = folder, secrets.token_hex(16)
        self.at = f"{USER}:{self._password}@127.0.0.1:{self._port}"
        self._account = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}  # not as root
        secret = folder / "password"
        secret.write_text(self._password)
        for path in (folder, secret) if self._account else ():
            shutil.chown(path, **self._account)
        common = [f"--username={USER}", f"--pwfile={secret}", "--auth=scram-sha-256", "--encoding=UTF8"]
        words = [PROGRAMS / "initdb", "--no-sync", *common, folder / "data"]
        subprocess.run(words, check=True, capture_output=True, **self._account)
        self.start()

    def start(self) -> None:
        """Start it, again while processes of one that was killed are ending, and return once it answers."""
        assert PROGRAMS
        words = [PROGRAMS / "postgres", "-D", self.folder / "data", "-k", self.folder, "-p", str(self._port)]
        asked = [PROGRAMS / "pg_isready", "-h", "127.0.0.1", "-p", str(self._port), "-U", USER]
        log, end = self.folder / "log", time.monotonic() + 60
        while True:
            with log.open("w") as output:
                self.process = subprocess.Popen(
                    [*words, "-c", "fsync=off"], stdout=output, stderr=output, cwd=self.folder, **self._account
                )
            while self.process.poll() is None:
                if subprocess.run(asked, capture_output=True).returncode == 0:
                    return
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            assert "pre-existing shared memory" in log.read_text() and time.monotonic() < end, log.read_text()

    def kill(self) -> None:
        """`kill -9` of its first process, with which the others end."""
        self.process.kill()
        self.process.wait()

    def create(self, *databases: str) -> None:
        """Create databases."""
        assert PROGRAMS
        for name in databases:
            words = [PROGRAMS / "createdb", "-h", "127.0.0.1", "-p", str(self._port), "-U", USER, name]
            subprocess.run(words, env=os.environ | {"PGPASSWORD": self._password}, check=True)


@contextmanager
def running(*databases: str) -> Iterator[Server]:
    """Start a server with these databases."""
    folder = Path(tempfile.mkdtemp(prefix="bigr-postgres-"))  # pytest's own can be entered by this user alone
    server = Server(folder)
    try:
        server.create(*databases)
        yield server
    finally:
        server.process.terminate()
        server.process.wait(60)
        shutil.rmtree(folder)


@contextmanager
def serving(*databases: str) -> Iterator[str]:
    """Start a server with these databases; the part of their URLs before the name."""
    with running(*databases) as server:
        yield server.at
