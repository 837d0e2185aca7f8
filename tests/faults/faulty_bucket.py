"""A server of S3 that begins to fail in mid-run: a proxy on loopback before the one of tests/s3_server.py."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("500", "silent", "cut")
"""It answers with status 500, not at all, or with half of what it was asked for."""
_FORWARDED = ("GET", "HEAD", "PUT", "POST", "DELETE")


class Faults:
    """What the proxy does. url: its address."""

    def __init__(self) -> None:
        self.url = ""
        self._lock = threading.Lock()
        self._fault, self._method, self._left, self.asked = "", "", 0, 0
        self.over = threading.Event()
        self.over.set()

    def begin(self, fault: str, method: str, after: int) -> None:
        """From the request of an object by `method` number `after` on, fail: each request, until `end`."""
        with self._lock:
            self._fault, self._method, self._left, self.asked = fault, method, after, 0
            self.over.clear()

    def end(self) -> None:
        """Answer again."""
        with self._lock:
            self._fault = ""
            self.over.set()

    def of(self, method: str, path: str) -> str:
        """The fault that a request gets; empty for none. `asked` counts those that get one."""
        with self._lock:
            if not self._fault:
                return ""
            is_object = method == self._method and "?" not in path and path.count("/") > 1
            if self._left > 0:
                self._left -= is_object
                return ""
            self.asked += 1
            return self._fault


@contextmanager
def serving(behind: str) -> Iterator[Faults]:
    """The proxy before the server at the address `behind`."""
    faults, place = Faults(), urlsplit(behind)

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = faults.of(self.command, self.path)
            if fault == "silent":
                faults.over.wait(600)
                self.close_connection = True
                return
            if fault == "500":
                self.send_response(500)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            server = http.client.HTTPConnection(str(place.hostname), place.port, timeout=60)
            server.request(self.command, self.path, body, dict(self.headers))
            answer = server.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if fault else content)
            if fault:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_: object) -> None:
            pass

    for method in _FORWARDED:
        setattr(Proxy, f"do_{method}", Proxy.pass_on)
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        faults.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield faults
        finally:
            faults.end()
            server.shutdown()
