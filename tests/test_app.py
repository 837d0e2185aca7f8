"""`bigr app`: every tab in Chromium, what is refused and how that is said, and that nothing leaves loopback."""

import asyncio
import base64
import http.client
import inspect
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import bigr
from bigr.app import bounds, guard, panel, running
from bigr.app import server as serving
from bigr.app.gallery import Dataset
from bigr.app.links import Link
from bigr.app.page import build
from bigr.app.running import Done, watched
from bigr.app.tasks import INSIDE, NO_CLASS, OUTSIDE, Tasks, margins
from bigr.app.uploads import read_mask, read_upload
from bigr.imaging.frames import Frame
from bigr.imaging.model import ImageModel
from bigr.runtime.errors import BigrError
from tests import app_pages, browser, worlds

if TYPE_CHECKING:
    import gradio as gr
    from playwright.sync_api import Locator, Page

HOW = (0, 2, 3, 1.0, 2)
"""Seed, variants, iterations, guidance, diffusion steps."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with an untrained model of 8×8 pixels and three classes, and a small data set."""
    root = tmp_path_factory.mktemp("project")
    worlds.write_models(root)
    worlds.write_shards(root, size=8, classes=3, images=24)
    return root


@pytest.fixture(scope="module")
def tasks(project: Path) -> Tasks:
    """What the buttons do, over that model."""
    return Tasks(bigr.load(project, device="cpu"), Dataset(project / "data" / "shards"))


def example(tasks: Tasks) -> Image.Image:
    """A picture of the data set."""
    assert tasks.dataset is not None
    return tasks.dataset.examples[0][0]


def brush(mask: Image.Image | None) -> dict[str, str]:
    """What the page's brush sends."""
    return {"picture": "", "mask": "" if mask is None else panel.uri(mask)}


def lower_half() -> Image.Image:
    """A mask as the brush makes it: opaque where painted."""
    mask = Image.new("RGBA", (64, 64))
    mask.paste((229, 72, 29, 255), (0, 32, 64, 64))
    return mask


# what is brought


def test_an_upload_is_made_upright_and_small_enough(tmp_path: Path) -> None:
    photo = Image.new("RGB", (3000, 1500), "teal")
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(tmp_path / "photo.jpg", exif=exif)
    upload = read_upload(tmp_path / "photo.jpg")
    assert upload.picture.size == (bounds.MAX_SIDE // 2, bounds.MAX_SIDE)
    assert upload.size == (1500, 3000) and upload.scaled
    photo.resize((300, 150)).save(tmp_path / "small.jpg", exif=exif)
    assert not read_upload(tmp_path / "small.jpg").scaled


def test_what_is_no_picture_or_too_large_a_one_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.png").write_text("hello")
    with pytest.raises(BigrError, match=r"^notes.png: not a JPEG, PNG or WebP image$"):
        read_upload(tmp_path / "notes.png")
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    with pytest.raises(BigrError, match=r"^huge.png: 81 megapixels; at most 64 are taken here$"):
        read_upload(tmp_path / "huge.png")
    monkeypatch.setattr("bigr.app.uploads.MAX_UPLOAD_BYTES", 0)
    with pytest.raises(BigrError, match="larger than"):
        read_upload(tmp_path / "notes.png")


def test_a_mask_is_opaque_where_it_was_painted() -> None:
    mask = np.asarray(read_mask(panel.uri(lower_half())))
    assert not mask[:32].any() and (mask[32:] == 255).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Nothing is marked"),
        (panel.uri(Image.new("RGBA", (8, 8))), "Nothing is marked"),
        ("data:image/png;base64,AAAA", "not a PNG"),
        ("data:image/png;base64,§", "not a PNG"),
        (panel.uri(Image.new("1", (3000, 3000))), "3000×3000 pixels"),
    ],
)
def test_what_is_no_mask_is_refused(text: str, said: str) -> None:
    with pytest.raises(BigrError, match=said):
        read_mask(text)


# what the buttons do


def test_every_task_ends_with_pictures_and_the_time(tasks: Tasks) -> None:
    picture = example(tasks)
    calls: dict[str, Iterator[str]] = {
        "generate": tasks.generate([0, 2], *HOW),
        "inpaint": tasks.inpaint(picture, brush(lower_half()), NO_CLASS, "Feather", *HOW),
        "edit": tasks.edit(picture, brush(lower_half()), 1, "Poisson", *HOW),
        "outpaint": tasks.outpaint(picture, OUTSIDE, 50, 0, 0, 25, NO_CLASS, "None", *HOW),
        "interpolate": tasks.interpolate(0, 1, 3, *HOW),
        "enrich": tasks.enrich(picture, 1, True, NO_CLASS, *HOW),
    }
    pictures = {"generate": 4, "interpolate": 6}
    for name, call in calls.items():
        panels = list(call)
        assert "Iteration" in panels[0] and len(panels) > 1, name
        assert panels[-1].count("download=") == pictures.get(name, 2), name
        assert "s</b> <span>seed 0, " in panels[-1], name


def test_the_page_enriches_on_a_grid_without_whole_cells(tmp_path: Path) -> None:
    worlds.write_models(tmp_path, grid=7)
    odd = Tasks(bigr.load(tmp_path, device="cpu"), None)
    last = list(odd.enrich(Image.new("RGB", (28, 20), "red"), 1, True, NO_CLASS, *HOW))[-1]
    assert last.count("download=") == 2 and "given, 7×7" in last


def test_variants_of_several_classes_stand_below_each_other(tasks: Tasks) -> None:
    last = list(tasks.generate([0, 2], *HOW))[-1]
    drawn = tasks.model.generate([0, 2], seed=0, variants=2, iterations=3, guidance_scale=1.0, diffusion_steps=2)
    places = [last.index(panel.uri(drawn[place])) for place in (0, 2, 1, 3)]
    assert places == sorted(places)


def test_features_find_the_picture_itself_among_those_alike(tasks: Tasks) -> None:
    assert tasks.dataset is not None
    pixels, _ = tasks.dataset._training
    picture = Image.fromarray(pixels[5].permute(1, 2, 0).contiguous().numpy())
    first = tasks.dataset.nearest(tasks.model, picture, 1, 3)[0]
    assert first.similarity == pytest.approx(1, abs=1e-5)
    assert np.array_equal(np.asarray(first.picture), np.asarray(picture))
    least = tasks.dataset.nearest(tasks.model, picture, 1, 24)[-1]
    assert least.similarity < 0  # not 1.00 for all, as by what all pictures share


def test_the_data_set_is_looked_at_once_for_all_layers_and_what_a_stopped_call_did_is_kept(project: Path) -> None:
    model, dataset = bigr.load(project, device="cpu"), Dataset(project / "data" / "shards")
    dataset._training  # noqa: B018  # read now
    watched = list(dataset.look(model))
    assert watched[-1] >= dataset.compared
    assert list(dataset.look(model)) == []
    picture = dataset.examples[0][0]
    by_layer = [dataset.nearest(model, picture, layer, 5) for layer in (1, 2)]
    assert [one.similarity for one in by_layer[0]] != [one.similarity for one in by_layer[1]]
    assert len(list(dataset.look(bigr.load(project, device="cpu")))) == len(watched)  # another model, other features


def test_the_data_set_is_looked_at_under_a_bar_that_fills(project: Path) -> None:
    tabs = Tasks(bigr.load(project, device="cpu"), Dataset(project / "data" / "shards"))
    panels = list(tabs.features(example(tabs), 1))
    bars = [int(found[1]) for one in panels if (found := re.search(r'aria-valuenow="(\d+)"', one))]
    assert bars[0] == 0 and bars[-1] == 100 and "progressbar" not in panels[-1]


def frame(number: int, of: int, entropy: Any, brightness: int = 0) -> Frame:
    """A frame of one picture whose tokens have this entropy, NaN where decided before."""
    return Frame(number, of, [Image.new("RGB", (8, 8), (brightness,) * 3)], [np.array(entropy, np.float32)])


def test_the_strip_names_its_picture_and_colours_up_to_the_largest_entropy() -> None:
    trace = panel.Trace("the first picture (7)")
    trace.add(frame(1, 2, [[0.2, 0.1], [0.0, 0.05]]))
    trace.add(frame(2, 2, [[np.nan, 0.1], [np.nan, 0.05]]))
    strip = trace.html()
    assert "the first picture (7)" in strip and "0.20 bits" in strip
    maps = [colours(uri) for uri in re.findall(r'entropy" src="([^"]+)"', strip)]
    assert tuple(maps[0][0, 0]) == (182, 52, 20, 255) and tuple(maps[0][1, 0]) == (250, 232, 214, 255)
    assert maps[1][0, 0, 3] == 0


def colours(uri: str) -> np.ndarray:
    """The picture in a data URI, RGBA."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))


def test_the_strip_ends_with_its_picture_where_others_follow() -> None:
    trace, whole = panel.Trace(alone=True), np.full((2, 2), 0.3)
    half = np.array([[np.nan, np.nan], [0.2, 0.2]])
    for number, entropy in enumerate([whole, half, whole, half], start=1):
        trace.add(frame(number, 4, entropy))
    assert [number for number, *_ in trace.steps] == [1, 2]


def test_iterations_that_differ_from_the_sliders_are_explained(tasks: Tasks) -> None:
    few = list(tasks.inpaint(example(tasks), brush(lower_half()), NO_CLASS, "Feather", 0, 1, 8, 1.0, 2))[-1]
    assert re.search(r"8 iterations chosen, [1-7] taken", few)
    assert "seed 0, 2 iterations<" in list(tasks.generate([0], 0, 1, 2, 1.0, 2))[-1]


def test_a_link_sets_what_its_controls_can_hold_and_nothing_else(tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("gradio.Warning", lambda text, **_: said.append(text))
    import gradio as gr

    with gr.Blocks():
        link = Link.of(
            "T",
            [
                gr.State(1),
                gr.Slider(0, 9, label="Left, %"),
                gr.Dropdown([("a", 0), ("b", 1)], multiselect=True, label="Classes"),
                gr.Radio(["x", "y"], label="Way"),
                gr.Checkbox(label="Made small"),
            ],
        )
    assert list(link.settings) == ["left", "classes", "way", "made-small"]
    read = link.read({"left": "3", "classes": "1,0", "way": "y", "made-small": "true", "more": "1"})
    assert list(read.values()) == [3, [1, 0], "y", True] and not said
    wrong = {"left": "nan", "classes": "0,7", "way": "<script>", "made-small": "1"}
    assert link.read(wrong) == {} and all(name in said[0] for name in wrong) and "<" not in said[0]


def test_what_the_page_may_not_ask_for_is_refused(tasks: Tasks) -> None:
    picture, painted = example(tasks), brush(lower_half())
    refused: list[tuple[Iterator[str], str]] = [
        (tasks.generate(list(range(3)) * 4, *HOW), "12 classes"),
        (tasks.generate([7], *HOW), "no class of this model"),
        (tasks.generate([0], 0, 99, 3, 1.0, 2), "99 variants"),
        (tasks.generate([0], 10**6, 1, 3, 1.0, 2), "seed 1000000"),
        (tasks.generate([0], 0, 1, 999, 1.0, 2), "iterations"),
        (tasks.inpaint(None, painted, NO_CLASS, "Feather", *HOW), "Choose a picture"),
        (tasks.inpaint(picture, brush(None), NO_CLASS, "Feather", *HOW), "Nothing is marked"),
        (tasks.inpaint(picture, "?", NO_CLASS, "Feather", *HOW), "Nothing is marked"),
        (tasks.inpaint(picture, painted, NO_CLASS, "Glue", *HOW), "blend"),
        (tasks.edit(picture, painted, NO_CLASS, "Feather", *HOW), "Choose the class"),
        (tasks.outpaint(picture, INSIDE, 0, 0, 0, 0, NO_CLASS, "Feather", *HOW), "nothing to paint"),
        (tasks.outpaint(picture, INSIDE, 50, 0, 50, 0, NO_CLASS, "Feather", *HOW), "Nothing of the picture"),
        (tasks.outpaint(picture, OUTSIDE, 0, 0, 0, 900, NO_CLASS, "Feather", *HOW), "0 to 100"),
        (tasks.interpolate(0, 1, 500, *HOW), "500 pictures"),
        (tasks.features(picture, 99), "layer"),
    ]
    for call, said in refused:
        with pytest.raises(BigrError, match=said):
            list(call)


def test_what_the_page_starts_with_is_what_the_library_does_by_default(tasks: Tasks) -> None:
    """Every control as it stands when the page opens, against a call that leaves all to the model."""
    own, picture, mask = tasks.model, example(tasks), brush(lower_half())
    sampling = replace(own.sampling, guidance_scale=1.5, iterations=5, diffusion_steps=3, gumbel_temperature=0.4)
    painting = replace(own.editing, guidance_scale=3.5, gumbel_temperature=0.1, feather=0.7)
    enriching = replace(painting, enrich_guidance_scale=6.0, enrich_rounds=2)
    model = ImageModel(own._sampler, sampling, enriching, own.classes)
    page, given = build(model, tasks.dataset), read_mask(mask["mask"])
    tabs = Tasks(model, tasks.dataset)

    def drawn(name: str, **changes: Any) -> set[str]:
        values = shown(page, name) | changes
        return set(re.findall(r'<a download=.*?src="(data:[^"]+)"', list(getattr(tabs, name)(*values.values()))[-1]))

    def uris(pictures: list[Image.Image]) -> set[str]:
        return {panel.uri(one) for one in pictures}

    small = shown(page, "enrich")["picture"]
    half = (0, 0, picture.width, picture.height // 2)
    assert drawn("generate") == uris(model.generate([0, 1, 2], variants=4))
    assert drawn("inpaint", brush=mask) == uris(model.inpaint(picture, given, variants=4))
    assert drawn("inpaint", brush=mask, label=1) == uris(model.inpaint(picture, given, label=1, variants=4))
    assert drawn("edit", brush=mask) == uris(model.edit(picture, given, 0, variants=4))
    assert drawn("outpaint") == uris(model.outpaint(picture, box=half, variants=4))
    assert drawn("outpaint", label=1) == uris(model.outpaint(picture, box=half, label=1, variants=4))
    assert drawn("interpolate") == uris(model.interpolate(0, 1, variants=3))
    assert drawn("enrich") == uris(model.enrich(small, variants=4))
    assert drawn("enrich", label=1) == uris(model.enrich(small, label=1, variants=4))
    layer = int(shown(page, "features")["layer"])
    assert torch.equal(model.features(picture), model.features(picture, layer))


def shown(page: "gr.Blocks", name: str) -> dict[str, Any]:
    """What a tab's controls hold when the page opens, by the names that the tab's task has for them."""
    call = next(one for one in page.fns.values() if getattr(one.fn, "__name__", "") == name)
    parameters = list(inspect.signature(getattr(Tasks, name)).parameters.values())[1:]
    named = [one.name for one in parameters if one.kind is not one.VAR_POSITIONAL]
    named += [str(number) for number in range(len(call.inputs) - len(named))]
    return {key: component.value for key, component in zip(named, call.inputs, strict=True)}


def test_a_tiny_margin_is_a_pixel_at_least() -> None:
    assert margins(Image.new("RGB", (8, 4)), (5, 0, 100, 50)) == (1, 0, 8, 2)


def test_text_of_others_is_no_html() -> None:
    assert "<script" not in panel.refused("<script>") + panel.idle("<script>")


# a call that is watched


def test_a_call_that_nobody_watches_any_more_ends_with_its_next_frame() -> None:
    frame = Frame(1, 1000, [], [])
    ended = threading.Event()

    def call(on_step: Any) -> None:
        try:
            for _ in range(1000):
                on_step(frame)
                time.sleep(0.01)
        finally:
            ended.set()

    frames = watched(call)
    assert next(frames) is frame
    frames.close()  # type: ignore[attr-defined]
    assert ended.wait(2)


def test_what_a_call_raises_is_raised_where_it_is_watched() -> None:
    def call(on_step: Any) -> None:
        raise BigrError("no")

    with pytest.raises(BigrError, match=r"^no$"):
        list(watched(call))
    last = list(watched(lambda on_step: 7))[-1]
    assert isinstance(last, Done) and last.value == 7


# the server


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
            serving.check_port("127.0.0.1", port)
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


# the page


@pytest.fixture(scope="module")
def address(tasks: Tasks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the page is served."""
    with app_pages.serve(tasks.model, tasks.dataset, tmp_path_factory.mktemp("uploads")) as address:
        yield address


@pytest.fixture(scope="module")
def page(address: str) -> Iterator["Page"]:
    """A laptop's window."""
    with browser.page(*app_pages.LAPTOP) as page:
        page.set_default_timeout(app_pages.PATIENCE)
        yield page


def sources(result: "Locator") -> list[str]:
    """The pictures of a result that can be saved, as data URIs."""
    return [str(image.get_attribute("src")) for image in result.locator("figure a img").all()]


def pixels(uri: str) -> np.ndarray:
    """The picture in a data URI."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")).astype(int)


def checked(result: "Locator", count: int) -> list[np.ndarray]:
    """The pictures of a result that also tells the time."""
    assert result.locator(".time").inner_text().endswith("s")
    found = [pixels(uri) for uri in sources(result)]
    assert len(found) == count
    return found


@pytest.mark.browser
def test_generate_draws_a_column_for_each_class(page: "Page", address: str) -> None:
    tab = app_pages.open_tab(page, address, "Generate")
    drawn = checked(app_pages.press(tab), 3 * 4)
    assert drawn[0].shape == (8, 8, 3) and (drawn[0] != drawn[1]).any()
    assert tab.locator(".trace li").count() > 3
    assert tab.locator(".came figure img").first.evaluate("e => getComputedStyle(e).imageRendering") == "pixelated"


@pytest.mark.browser
@pytest.mark.parametrize("name", ["Inpaint", "Edit"])
def test_what_is_painted_over_with_the_mouse_is_drawn_anew(page: "Page", address: str, tasks: Tasks, name: str) -> None:
    tab = app_pages.open_tab(page, address, name)
    tab.locator(".buttons button").first.click()
    page.get_by_role("alert").get_by_text("Nothing is marked yet").first.wait_for()

    tab.locator(".examples button").nth(1).click()
    page.wait_for_timeout(500)
    app_pages.paint(page, tab, [(0.1, 0.9), (0.9, 0.9)])
    drawn = checked(app_pages.press(tab), 4)
    assert tasks.dataset is not None
    given = np.asarray(tasks.dataset.examples[1][0]).astype(int)
    for picture in drawn:
        assert (picture[:3] == given[:3]).all()
        assert (picture[7] != given[7]).any()


@pytest.mark.browser
def test_outpaint_shows_what_will_be_drawn_and_draws_it(page: "Page", address: str) -> None:
    tab = app_pages.open_tab(page, address, "Outpaint")
    tab.get_by_label(OUTSIDE).check()
    tab.locator(".outline .size", has_text="8×12").wait_for()
    assert {picture.shape for picture in checked(app_pages.press(tab), 4)} == {(12, 8, 3)}


@pytest.mark.browser
def test_interpolate_draws_a_row_for_each_variant(page: "Page", address: str) -> None:
    drawn = checked(app_pages.press(app_pages.open_tab(page, address, "Interpolate")), 3 * 9)
    assert (drawn[0] != drawn[8]).any()


@pytest.mark.browser
def test_enrich_enlarges_a_small_picture(page: "Page", address: str) -> None:
    tab = app_pages.open_tab(page, address, "Enrich")
    assert tab.locator(".outline .size").inner_text() == "4×4 pixels"
    assert {picture.shape for picture in checked(app_pages.press(tab), 4)} == {(8, 8, 3)}


@pytest.mark.browser
def test_features_shows_pictures_that_are_alike(page: "Page", address: str) -> None:
    tab = app_pages.open_tab(page, address, "Features")
    app_pages.press(tab)
    tab.get_by_text("Most alike to the model").wait_for()
    assert tab.locator(".came figure").count() == 2 + 10


@pytest.mark.browser
def test_an_own_picture_is_taken_and_what_is_none_is_said(page: "Page", address: str, tmp_path: Path) -> None:
    tab = app_pages.open_tab(page, address, "Inpaint")
    upload = tab.locator("input[type=file]")
    (tmp_path / "notes.png").write_text("no picture")
    upload.set_input_files(tmp_path / "notes.png")
    page.get_by_text("notes.png: not a JPEG, PNG or WebP image").wait_for()
    assert page.get_by_text("Traceback").count() == 0

    Image.new("RGB", (30, 20), "teal").save(tmp_path / "own.png")
    upload.set_input_files(tmp_path / "own.png")
    page.wait_for_function("[...document.querySelectorAll('.board img')].some(e => e.naturalWidth === 30)")
    tab.get_by_role("button", name="Lower half").click()
    assert {picture.shape for picture in checked(app_pages.press(tab), 4)} == {(20, 30, 3)}


WIDTH = "[...document.querySelectorAll('.bench')].filter(e => e.offsetParent)[0].getBoundingClientRect().width"


@pytest.mark.browser
def test_the_width_stays_and_the_button_is_in_sight(page: "Page", address: str) -> None:
    widths = set()
    for name in ("Generate", "Inpaint", "Outpaint", "Edit", "Interpolate", "Enrich", "Features"):
        tab = app_pages.open_tab(page, address, name)
        box = tab.locator(".buttons button").first.bounding_box()
        assert box is not None and box["y"] + box["height"] <= app_pages.LAPTOP[1], name
        widths.add(page.evaluate(WIDTH))
        tab.get_by_role("button", name="Stop").click()
        tab.get_by_text("Stopped.").wait_for()
        widths.add(page.evaluate(WIDTH))
    assert len(widths) == 1


@pytest.mark.browser
def test_what_grows_around_a_picture_is_hatched(page: "Page", address: str) -> None:
    tab = app_pages.open_tab(page, address, "Outpaint")
    tab.get_by_label(OUTSIDE).check()
    tab.locator(".outline .size", has_text="8×12").wait_for()
    background = tab.locator(".outline .frame").evaluate("e => getComputedStyle(e).backgroundImage")
    assert "repeating-linear-gradient" in background


@pytest.mark.browser
def test_a_slider_can_be_read_in_the_dark(page: "Page", address: str) -> None:
    page.emulate_media(color_scheme="dark")
    try:
        slider = app_pages.open_tab(page, address, "Generate").get_by_label("range slider for Seed")
        shades = np.asarray(Image.open(io.BytesIO(slider.screenshot())).convert("L")).astype(int)
    finally:
        page.emulate_media(color_scheme="light")
    row = shades[shades.shape[0] // 2]
    thumb, track = row[: len(row) // 5].max(), row[-len(row) // 3 : -len(row) // 6].mean()
    assert thumb - track > 100


@pytest.mark.browser
def test_a_very_long_picture_can_be_painted_on_and_is_announced_as_made_smaller(
    page: "Page", address: str, tmp_path: Path
) -> None:
    tab = app_pages.open_tab(page, address, "Inpaint")
    Image.new("RGB", (3000, 20), "teal").save(tmp_path / "long.png")
    tab.locator("input[type=file]").set_input_files(tmp_path / "long.png")
    page.get_by_text("1536×10 pixels").wait_for()
    page.wait_for_function("[...document.querySelectorAll('.board img')].some(e => e.naturalHeight === 7)")
    box = tab.locator(".board").bounding_box()
    assert box is not None and box["height"] >= 40
    assert page.evaluate("document.documentElement.scrollWidth") <= app_pages.LAPTOP[0]


@pytest.mark.browser
def test_the_keyboard_paints_walks_the_tabs_and_takes_a_class_out(page: "Page", address: str) -> None:
    tab = app_pages.open_tab(page, address, "Generate")
    before = tab.locator(".token").count()
    tab.get_by_role("button", name="Remove", exact=False).first.focus()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Remove ")
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.querySelectorAll('.token').length === {before - 1}")
    page.get_by_role("tab", name="Generate", exact=True).focus()
    page.keyboard.press("ArrowRight")
    tab = page.get_by_role("tabpanel").filter(visible=True)
    canvas = tab.locator(".board:not(.empty) canvas")
    page.wait_for_timeout(500)
    canvas.focus()
    page.keyboard.press("ArrowDown")
    assert tab.locator(".board.painted").count() == 0
    page.keyboard.press("Space")
    tab.locator(".board.painted").wait_for()
    page.keyboard.press("Control+z")
    tab.locator(".board:not(.painted)").wait_for()


@pytest.mark.browser
def test_a_picture_is_enlarged_and_all_are_saved(page: "Page", address: str) -> None:
    tab = app_pages.open_tab(page, address, "Generate")
    done = app_pages.press(tab)
    done.locator("figure a").nth(11).click()
    dialog = page.get_by_role("dialog", name="enlarged picture")
    box = dialog.locator("img").bounding_box()
    assert box is not None and box["width"] > 500
    page.keyboard.press("ArrowRight")
    assert dialog.locator("img").get_attribute("src") == sources(done)[0]
    with page.expect_download() as one:
        dialog.get_by_text("Save", exact=True).click()
    assert one.value.suggested_filename == "generate-seed0-1.png"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    with page.expect_download() as all_of_them:
        done.get_by_role("button", name="Save all").click()
    with zipfile.ZipFile(all_of_them.value.path()) as archive:
        assert archive.testzip() is None and len(archive.namelist()) == 12
        saved = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()]
    assert all((a == pixels(b)).all() for a, b in zip(saved, sources(done), strict=True))


@pytest.mark.browser
def test_a_link_opens_the_tab_with_its_settings(page: "Page", address: str) -> None:
    tab = app_pages.open_tab(page, address, "Interpolate")
    seed = tab.get_by_label("number input for Seed")
    tab.get_by_role("button", name="Random").click()
    page.wait_for_function(
        "[...document.querySelectorAll('input[aria-label$=Seed]')].some(e => e.offsetParent && e.value > 0)"
    )
    drawn = seed.input_value()
    tab.get_by_role("button", name="Copy link").click()
    page.wait_for_url("**/?tab=Interpolate*")
    page.goto(page.url)
    tab = page.get_by_role("tabpanel").filter(visible=True)
    tab.get_by_role("button", name="Interpolate").wait_for()
    expect = (
        f"[...document.querySelectorAll('input[aria-label$=Seed]')].some(e => e.offsetParent && e.value === '{drawn}')"
    )
    page.wait_for_function(expect)


@pytest.mark.browser
def test_who_waits_sees_the_place_in_the_queue(page: "Page", address: str) -> None:
    other = page.context.new_page()
    try:
        with running._one_at_a_time:
            tab = app_pages.open_tab(page, address, "Generate")
            tab.locator(".buttons button").first.click()
            tab.get_by_text("Waiting for the model").wait_for()
            page.wait_for_timeout(1500)
            waiting = app_pages.open_tab(other, address, "Generate")
            waiting.locator(".buttons button").first.click()
            waiting.locator(".came").get_by_text(re.compile("queue: 1/1")).first.wait_for(timeout=app_pages.PATIENCE)
        waiting.locator(".came .result.done").wait_for(timeout=app_pages.PATIENCE)
    finally:
        other.close()


@pytest.mark.browser
def test_the_page_fits_a_phone_and_asks_nobody_else(page: "Page", address: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    width, height = app_pages.PHONE
    page.set_viewport_size({"width": width, "height": height})
    for name in ("Interpolate", "Inpaint", "Outpaint"):
        tab = app_pages.open_tab(page, address, name)
        if name == "Interpolate":
            app_pages.press(tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        for example in tab.locator(".examples button").all():
            box = example.bounding_box()
            shown = tab.locator(".examples .examples").bounding_box()
            assert box is not None and shown is not None and box["x"] + box["width"] <= shown["x"] + shown["width"]
    assert page.locator("footer").filter(visible=True).count() == 0
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


@pytest.mark.browser
def test_on_a_phone_the_button_that_saves_is_beside_the_time(page: "Page", address: str) -> None:
    width, height = app_pages.PHONE
    page.set_viewport_size({"width": width, "height": height})
    result = app_pages.press(app_pages.open_tab(page, address, "Generate"))
    save, time = (result.locator(part).bounding_box() for part in (".all", ".time"))
    assert save is not None and time is not None
    assert abs(save["y"] + save["height"] / 2 - time["y"] - time["height"] / 2) < time["height"] / 2
