"""What `flows.deploy` makes of a server that refuses, that is silent, and that is none."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from bigr.runtime.errors import BigrError
from flows import deploy


@contextmanager
def answering(*codes: int) -> Iterator[str]:
    """A server that answers each request with the next of these, the last from then on."""
    left = list(codes)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(code)
            if code == 302:
                self.send_header("Location", self.path)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"no")

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()


def said(url: str, patience_s: float) -> str:
    """The error of a connection that comes to nothing."""
    with (
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(BigrError) as raised,
        deploy.connected(patience_s),
    ):
        pass
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (401, "PREFECT_API_AUTH_STRING"),
        (403, "PREFECT_API_AUTH_STRING"),
        (404, "PREFECT_API_URL must"),
        (302, "not Prefect's"),
        (200, "not Prefect's"),
    ],
)
def test_a_server_that_refuses_is_told_at_once(code: int, what: str) -> None:
    with answering(code) as url:
        started = time.monotonic()
        assert what in said(url, patience_s=600)
        assert time.monotonic() - started < 20


@pytest.mark.parametrize("url", ["nonsense", "127.0.0.1:4200/api", "https://{server}/api", "ftp://127.0.0.1/api"])
def test_an_address_that_can_never_answer_is_told_at_once(url: str) -> None:
    with answering(200) as there:
        started = time.monotonic()
        address = url.format(server=there.removeprefix("http://").removesuffix("/api"))
        assert "PREFECT_API_URL must" in said(address, patience_s=600)
        assert time.monotonic() - started < 20


def test_a_server_that_is_silent_is_waited_for_and_the_reason_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as none:
        none.bind(("127.0.0.1", 0))
        url = f"http://ada:secret@127.0.0.1:{none.getsockname()[1]}/api"
        assert "Connection refused" in said(url, patience_s=8)
    told = capsys.readouterr().err
    assert told.count("waiting") == 1 and "Connection refused" in told and "secret" not in told


def test_a_server_that_has_too_much_to_do_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(503, 429, 502, 401) as url:
        assert "401" in said(url, patience_s=600)
    told = capsys.readouterr().err
    assert [told.count(f"status {code}") for code in (503, 429, 502)] == [1, 1, 1]
