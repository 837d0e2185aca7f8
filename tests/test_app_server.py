"""`bigr app` as a server: how it starts and ends, and what it refuses of other sites."""

import asyncio
import gc
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from bigr.app import bounds, guard
from bigr.runtime.errors import BigrError
from bigr.runtime.ports import check_port
from tests import app_pages, worlds

if TYPE_CHECKING:
    pass


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a tiny model and data set."""
    return app_pages.tiny_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def address(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the page is served."""
    tasks = app_pages.tiny_tasks(project)
    with app_pages.serve(tasks.model, tasks.dataset, tmp_path_factory.mktemp("uploads")) as address:
        yield address


def answer(folder: Path, path: str, length: bytes | None) -> int:
    """The status that the guard gives a POST; 200 where it hands it on."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    headers = [(b"host", b"localhost")] + ([] if length is None else [(b"content-length", length)])
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    hosts = guard.Hosts("127.0.0.1")
    asyncio.run(guard.Guard(app, folder, hosts)(scope, receive, send))  # type: ignore[arg-type]
    return int(sent[0]["status"])


def test_uploads_are_bounded_in_size_and_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_UPLOADS", 1)
    assert answer(tmp_path, "/gradio_api/upload", b"10") == 200
    assert answer(tmp_path, "/gradio_api/upload", None) == 411
    assert answer(tmp_path, "/gradio_api/queue/join", str(bounds.MAX_BODY_BYTES + 1).encode()) == 413
    (tmp_path / "a").write_text("a")
    assert answer(tmp_path, "/gradio_api/upload", b"10") == 429
    assert answer(tmp_path, "/gradio_api/queue/join", b"10") == 200


def test_a_taken_port_is_one_line(project: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BigrError, match=f"port {port} of 127.0.0.1 is taken"):
            check_port("127.0.0.1", port)
        done = command(project, "--port", str(port))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    done = command(tmp_path, "--port", str(app_pages.free_port()))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "no model there" in done.stderr


def command(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """`bigr app` in a folder."""
    return subprocess.run([*COMMAND, *words], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


COMMAND = [sys.executable, "-m", "bigr", "app"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(worlds.ROOT)}


@pytest.mark.server
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_end_it_and_nothing_is_left_or_written_elsewhere(
    project: Path, tmp_path: Path, number: signal.Signals
) -> None:
    port, here = app_pages.free_port(), tmp_path / "here"
    here.mkdir()
    environment = {**ENVIRONMENT, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    words = [*COMMAND, "--model", str(project), "--port", str(port), "--out", "out"]
    listening = partial(signal.signal, number, signal.SIG_DFL)  # a test run in the background ignores it
    process = subprocess.Popen(
        words, cwd=here, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=listening
    )
    try:
        assert process.stderr is not None
        assert f"http://127.0.0.1:{port}" in process.stderr.readline()
        process.send_signal(number)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in rest
    left = [path for path in tmp_path.rglob("*") if path.is_file() and ".cache/matplotlib" not in str(path)]
    assert left == []
    assert [path.name for path in here.rglob("*")] == ["out"]


# what other sites, and those who know no page, send


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[bytes]]]:
    """A server that the page's would reach, by its address; whatever it is asked is kept. It is the proxy as well."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    other, _ = server.accept()
                except OSError:
                    return
                with other:
                    asked.append(other.recv(4096))

        threading.Thread(target=listen, daemon=True).start()
        place = f"http://127.0.0.1:{server.getsockname()[1]}"
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, place)
        monkeypatch.delenv("NO_PROXY", raising=False)
        yield place, asked
        server.shutdown(socket.SHUT_RDWR)


def raw(
    address: str, method: str, path: str, body: Any = None, until: str | None = None, **headers: str | None
) -> tuple[int, str]:
    """Status and text of a request as it is written here. Host is the page's own unless another is given, or None.

    until: the text is read to the line that holds this.
    """
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    named = {"Host": address.removeprefix("http://"), "Content-Type": "application/json"}
    named |= {key.replace("_", "-"): value for key, value in headers.items()}
    content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.putrequest(method, path, skip_host=True)
    for key, value in named.items():
        if value is not None:
            connection.putheader(key, value)
    if content is not None:
        connection.putheader("Content-Length", str(len(content)))
    connection.endheaders(content)
    answer = connection.getresponse()
    text = "" if until else answer.read().decode("utf-8", "replace")
    while until is not None and until not in text and (line := answer.readline()):
        text += line.decode()
    connection.close()
    return answer.status, text


def event(address: str, file: Any) -> dict[str, Any]:
    """The upload of a file as the page sends it."""
    config = json.loads(raw(address, "GET", "/config")[1])
    (call, *_) = [one for one in config["dependencies"] if one["targets"] and one["targets"][0][1] == "upload"]
    data = [file, *[None] * (len(call["inputs"]) - 1)]
    return {"data": data, "fn_index": call["id"], "session_hash": uuid.uuid4().hex, "trigger_id": call["targets"][0][0]}


FILE = {"meta": {"_type": "gradio.FileData"}, "orig_name": "a.png", "size": 1}


@pytest.mark.server
@pytest.mark.parametrize("scheme", ["http://127.0.0.1", "https://example.org", "HTTP://example.org", "//example.org"])
def test_no_file_is_fetched_by_its_address(address: str, elsewhere: tuple[str, list[bytes]], scheme: str) -> None:
    place, asked = elsewhere
    url = f"{scheme.replace('http://127.0.0.1', place)}/a.png"
    for file in (
        {**FILE, "path": url},
        [{**FILE, "path": url}],
        {**FILE, "path": "a.png", "url": url},
        {"path": url},
        {"deep": [{"deeper": {**FILE, "path": url}}]},
    ):
        sent = event(address, file)
        assert raw(address, "POST", "/gradio_api/queue/join", sent)[0] == 400
        assert raw(address, "POST", "/gradio_api/run/predict", sent)[0] == 400
        assert raw(address, "POST", "/gradio_api/api/predict", sent)[0] == 404
        assert raw(address, "POST", "/gradio_api/call/uploaded", {"data": [file]})[0] == 404
    doubled = json.dumps(event(address, FILE)).replace('"meta"', f'"path": "{url}", "path": "a.png", "meta"')
    assert raw(address, "POST", "/gradio_api/queue/join", doubled.encode())[0] == 400
    escaped = json.dumps(event(address, {**FILE, "path": url})).replace("path", "p\\u0061th").replace("//", "\\/\\/")
    assert raw(address, "POST", "/gradio_api/queue/join", escaped.encode())[0] == 400
    if "://" in url:
        for path in ("/gradio_api/file=", "/file=", "/gradio_api/proxy=", "/gradio_api/file/", "/gradio_api/file%3D"):
            assert raw(address, "GET", path + url)[0] == 400
            assert raw(address, "GET", path + url.replace(":", "%3A").replace("/", "%2F"))[0] == 400
            assert raw(address, "HEAD", path + url)[0] == 400
    time.sleep(0.5)
    assert asked == []


@pytest.mark.server
def test_a_picture_that_is_uploaded_is_taken_and_no_other_file(address: str, tmp_path: Path) -> None:
    """What the page sends, without the page."""
    image = io.BytesIO()
    Image.new("RGB", (9, 9), "teal").save(image, "PNG")
    parts = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%s\r\n--b--\r\n'
    kind = "multipart/form-data; boundary=b"
    status, text = raw(address, "POST", "/gradio_api/upload", parts % image.getvalue(), Content_Type=kind)
    assert status == 200
    (path,) = json.loads(text)
    own = {**FILE, "path": path, "url": f"{address}/gradio_api/file={path}"}
    assert outcome(address, event(address, own))

    Image.new("RGB", (9, 9), "red").save(tmp_path / "secret.png")
    secret = str(tmp_path / "secret.png")
    for file in ({**FILE, "path": secret}, {"path": secret}, {"path": secret, "url": own["url"]}):
        assert not outcome(address, event(address, file)), file


def outcome(address: str, sent: dict[str, Any]) -> bool:
    """Whether an event that is put into the queue succeeds."""
    status, text = raw(address, "POST", "/gradio_api/queue/join", sent)
    assert status == 200, text
    path = f"/gradio_api/queue/data?session_hash={sent['session_hash']}"
    last = raw(address, "GET", path, until="process_completed")[1].splitlines()[-1]
    return bool(json.loads(last.removeprefix("data: "))["success"])


@pytest.mark.server
def test_twenty_calls_leave_nothing_in_memory(address: str) -> None:
    config = json.loads(raw(address, "GET", "/config")[1])
    generate = next(one for one in config["dependencies"] if len(one["inputs"]) == 8 and one["backend_fn"])
    session, held, result = uuid.uuid4().hex, [], 0
    tracemalloc.start()
    try:
        for call in range(20):
            data = [[0, 1, 2], call, 8, "Settings", 4, 1.0, 2, 2]
            sent = {"data": data, "fn_index": generate["id"], "session_hash": session, "trigger_id": None}
            assert raw(address, "POST", "/gradio_api/queue/join", sent)[0] == 200
            path = f"/gradio_api/queue/data?session_hash={session}"
            text = raw(address, "GET", path, until="process_completed")[1]
            assert "process_completed" in text and "result done" in text
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
            result = max(result, len(text))
    finally:
        tracemalloc.stop()
    assert result > 20_000
    assert held[-1] - held[4] < 2 * result  # fifteen results are more


@pytest.mark.server
def test_the_page_is_served_under_its_own_names_alone(address: str) -> None:
    port = address.rsplit(":", 1)[1]
    for name in ("127.0.0.1", "localhost", "LOCALHOST", "localhost.", "[::1]", f"localhost:{port}", f"[::1]:{port}"):
        assert raw(address, "GET", "/config", Host=name)[0] == 200, name
    for name in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "192.168.0.7", "[::2]"):
        status, text = raw(address, "GET", "/", Host=name)
        assert status == 403 and "--allow-host" in text, name
        assert raw(address, "POST", "/gradio_api/queue/join", event(address, FILE), Host=name)[0] == 403, name
    for name in (None, "", "evil.example@127.0.0.1", "127.0.0.1/evil.example", "[::1"):
        assert raw(address, "GET", "/", Host=name)[0] == 400, name


@pytest.mark.server
def test_pages_of_other_sites_may_not_use_this_one(address: str) -> None:
    port = address.rsplit(":", 1)[1]
    own = f"localhost:{port}"
    for site in ("http://evil.example", "https://localhost", "http://localhost:1", "null", f"http://127.0.0.1:{port}"):
        for method, path, body in (
            ("GET", "/config", None),
            ("POST", "/gradio_api/queue/join", event(address, FILE)),
            ("POST", "/gradio_api/upload", b"--b--"),
        ):
            status, text = raw(address, method, path, body, Host=own, Origin=site)
            assert status == 403 and site in text, (site, path)
    assert raw(address, "GET", "/config", Host=own, Origin=f"http://{own}")[0] == 200
    assert raw(address, "POST", "/gradio_api/cancel", b"{", Host=own, Origin=f"http://{own}")[0] == 400
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    for site in ("http://evil.example", f"http://{own}"):
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        asked = raw(address, "GET", "/gradio_api/queue/join", Host=own, Origin=site, Sec_WebSocket_Key=key, **headers)
        assert asked[0] in (403, 404), site


@pytest.mark.parametrize(
    ("listening", "allowed", "served", "refused"),
    [
        ("127.0.0.1", (), ("localhost", "::1"), ("10.0.0.7", "box.lan")),
        ("box.lan", (), ("box.lan", "localhost"), ("10.0.0.7", "lan")),
        ("0.0.0.0", (), ("10.0.0.7", "fe80::1", socket.gethostname().lower()), ("box.example", "10.0.0.7.example")),
        ("::", ("Draw.example",), ("draw.example", "10.0.0.7"), ("example", "not-draw.example")),
    ],
)
def test_who_listens_on_all_addresses_is_asked_for_by_number_or_by_a_name_that_was_allowed(
    listening: str, allowed: tuple[str, ...], served: tuple[str, ...], refused: tuple[str, ...]
) -> None:
    hosts = guard.Hosts(listening, allowed)
    assert [name for name in served if name not in hosts] == []
    assert [name for name in refused if name in hosts] == []
