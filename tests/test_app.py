"""What the page's buttons do, without a browser: uploads, tasks, links, and calls that are watched."""

import base64
import html
import inspect
import io
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import bigr
from bigr.app import bounds, panel
from bigr.app.gallery import Dataset
from bigr.app.running import Done, watched
from bigr.app.tasks import INSIDE, NO_CLASS, OUTSIDE, OWN, Tasks, margins
from bigr.app.uploads import read_mask, read_upload
from bigr.imaging.frames import Frame
from bigr.imaging.model import ImageModel
from bigr.runtime.errors import BigrError
from tests import app_pages, worlds

if TYPE_CHECKING:
    import gradio as gr

HOW = (0, 2, OWN, 3, 1.0, 2, 2)
"""Seed, variants, preset, iterations, guidance, diffusion steps of the first iteration and of the last."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a tiny model and data set."""
    return app_pages.tiny_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def tasks(project: Path) -> Tasks:
    """What the buttons do, over that model."""
    return app_pages.tiny_tasks(project)


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
    with pytest.raises(BigrError, match=r"^huge.png must have at most 64 megapixels, got 81$"):
        read_upload(tmp_path / "huge.png")
    monkeypatch.setattr("bigr.app.uploads.MAX_UPLOAD_BYTES", 0)
    with pytest.raises(BigrError, match="must be at most"):
        read_upload(tmp_path / "notes.png")


def test_a_mask_is_opaque_where_it_was_painted() -> None:
    mask = np.asarray(read_mask(panel.uri(lower_half())))
    assert not mask[:32].any() and (mask[32:] == 255).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Nothing is marked"),
        (panel.uri(Image.new("RGBA", (8, 8))), "Nothing is marked"),
        ("data:image/png;base64,AAAA", "must be a PNG"),
        ("data:image/png;base64,§", "must be a PNG"),
        (panel.uri(Image.new("1", (3000, 3000))), "got 3000×3000"),
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
    few = list(tasks.inpaint(example(tasks), brush(lower_half()), NO_CLASS, "Feather", 0, 1, OWN, 8, 1.0, 2, 2))[-1]
    assert re.search(r"8 iterations chosen, [1-7] taken", few)
    assert "seed 0, 2 iterations<" in list(tasks.generate([0], 0, 1, OWN, 2, 1.0, 2, 2))[-1]


def test_a_link_sets_what_its_controls_can_hold_and_nothing_else(tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("gradio.Warning", lambda text, **_: said.append(text))
    import gradio as gr

    from bigr.app.links import Link

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
        (tasks.generate(list(range(3)) * 4, *HOW), "at most 10 classes, got 12"),
        (tasks.generate([7], *HOW), "must be one of this model, got 7"),
        (tasks.generate([0], 0, 99, OWN, 3, 1.0, 2, 2), "Variants must be 1 to 8, got 99"),
        (tasks.generate([0], 10**6, 1, OWN, 3, 1.0, 2, 2), "Seed must be 0 to 9999, got 1000000"),
        (tasks.generate([0], 0, 1, OWN, 999, 1.0, 2, 2), "iterations"),
        (tasks.inpaint(None, painted, NO_CLASS, "Feather", *HOW), "Choose a picture"),
        (tasks.inpaint(picture, brush(None), NO_CLASS, "Feather", *HOW), "Nothing is marked"),
        (tasks.inpaint(picture, "?", NO_CLASS, "Feather", *HOW), "Nothing is marked"),
        (tasks.inpaint(picture, painted, NO_CLASS, "Glue", *HOW), "blend"),
        (tasks.edit(picture, painted, NO_CLASS, "Feather", *HOW), "Choose the class"),
        (tasks.outpaint(picture, INSIDE, 0, 0, 0, 0, NO_CLASS, "Feather", *HOW), "nothing to paint"),
        (tasks.outpaint(picture, INSIDE, 50, 0, 50, 0, NO_CLASS, "Feather", *HOW), "Nothing of the picture"),
        (tasks.outpaint(picture, OUTSIDE, 0, 0, 0, 900, NO_CLASS, "Feather", *HOW), "0 to 100"),
        (tasks.interpolate(0, 1, 500, *HOW), "must be 2 to 15, got 500"),
        (tasks.features(picture, 99), "layer"),
    ]
    for call, said in refused:
        with pytest.raises(BigrError, match=said):
            list(call)


def test_what_the_page_starts_with_is_what_the_library_does_by_default(tasks: Tasks) -> None:
    """Every control as it stands when the page opens, against a call that leaves all to the model."""
    from bigr.app.page import build

    own, picture, mask = tasks.model, example(tasks), brush(lower_half())
    sampling = replace(own.sampling, guidance_scale=1.5, iterations=5, diffusion_steps=3, gumbel_temperature=0.4)
    painting = replace(own.editing, guidance_scale=3.5, gumbel_temperature=0.1, feather=0.7)
    enriching = replace(painting, enrich_guidance_scale=6.0, enrich_rounds=2)
    model = ImageModel(own.sampler, sampling, enriching, own.classes)
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


def test_images_of_a_call_are_as_many_as_a_page_can_hold(tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigr.app.tasks.MAX_DRAWN_PIXELS", 3 * tasks.model.size**2)
    assert "result done" in list(tasks.generate([0], 0, 3, *HOW[2:]))[-1]
    for call in (lambda: tasks.generate([0, 1], *HOW), lambda: tasks.interpolate(0, 1, 4, 0, 1, *HOW[2:])):
        with pytest.raises(BigrError, match="Choose fewer: at most 3 pictures of 8×8 pixels in one call, got 4"):
            list(call())


def test_a_few_of_many_classes_are_chosen_at_first_so_that_others_can_be_added() -> None:
    from bigr.app.page import first_classes

    assert first_classes(10) == list(range(10))
    assert first_classes(1000) == [0, 250, 500, 750]


def test_large_images_are_shown_small_while_they_are_drawn() -> None:
    pictures = [Image.new("RGB", (600, 600))] * 5
    html = panel.running(Frame(1, 2, pictures, [np.zeros((2, 2), np.float32)] * 5), panel.Trace())
    encoded = re.findall(r"data:image/png;base64,([^\"]+)", html)
    sizes = [Image.open(io.BytesIO(base64.b64decode(one))).size for one in encoded]
    assert sizes == [(panel.RUNNING_SIDE,) * 2] * 5


def test_a_tiny_margin_is_a_pixel_at_least() -> None:
    assert margins(Image.new("RGB", (8, 4)), (5, 0, 100, 50)) == (1, 0, 8, 2)


def test_text_of_others_is_no_html() -> None:
    assert "<script" not in panel.refused("<script>") + panel.idle("<script>")


# a call that is watched


@pytest.mark.parametrize(("takes_texts", "knows_labels"), [(False, True), (True, True), (False, False)])
def test_the_page_speaks_of_what_the_model_is_told(takes_texts: bool, knows_labels: bool) -> None:
    from bigr.app.page import TABS

    model: Any = SimpleNamespace(takes_texts=takes_texts, knows_labels=knows_labels)
    shown = [tab for tab in TABS if knows_labels or not tab.needs_classes]
    words = " ".join(word for tab in shown for word in tab.worded(model))
    assert "{" not in words
    assert ("class" in words, "text" in words) == (knows_labels and not takes_texts, takes_texts)


def test_long_captions_can_be_read_whole() -> None:
    text = 'a "red" circle ' * 20
    page = panel.finished([Image.new("RGB", (8, 8))], [text], 1.0, "generate", trace=panel.Trace())
    assert f'<figcaption title="{html.escape(text)}">' in page


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
