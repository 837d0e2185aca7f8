"""`bigr app` in Chromium: every tab, on a laptop and on a phone, and that nothing leaves loopback."""

import base64
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from bigr.app import running
from bigr.app.tasks import OUTSIDE, Tasks
from tests import app_pages, browser

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Tasks:
    """What the buttons do, over a tiny model."""
    return app_pages.tiny_tasks(app_pages.tiny_project(tmp_path_factory.mktemp("project")))


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
            drawn = app_pages.press(tab).locator("figure img").first.bounding_box()
            assert drawn is not None and drawn["width"] >= 60  # one of nine columns, which scroll
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
