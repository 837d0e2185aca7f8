"""The page of `bigr app`, opened in Chromium: for its tests, and for the pictures of the README.

`python -m tests.app_pages PROJECT FOLDER` takes those pictures of a project that holds a trained model.
"""

import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests import browser, worlds

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from bigr.app.gallery import Dataset
    from bigr.app.tasks import Tasks
    from bigr.imaging.model import ImageModel

PATIENCE = 60_000
"""Milliseconds to wait for anything on the page: a busy machine draws slowly."""
LAPTOP, PHONE = (1440, 900), (390, 844)


def tiny_project(root: Path) -> Path:
    """`root` with an untrained model of 8×8 pixels and three classes, and a small data set."""
    worlds.write_models(root)
    worlds.write_shards(root, size=8, classes=3, images=24)
    return root


def tiny_tasks(project: Path) -> "Tasks":
    """What the buttons do, over that model."""
    import bigr
    from bigr.app.gallery import Dataset
    from bigr.app.tasks import Tasks

    return Tasks(bigr.load(project, device="cpu"), Dataset(project / "data" / "shards"))


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve(model: "ImageModel", dataset: "Dataset | None", folder: Path) -> Iterator[str]:
    """The address of the page over a model, served from threads of this process."""
    from bigr.app import server

    port = free_port()
    page = server.start(model, dataset, folder, "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        page.close(verbose=False)


def open_tab(page: "Page", address: str, name: str) -> "Locator":
    """The page anew, and what is in the tab `name`. A phone hides some tabs in a menu."""
    page.goto(address)
    page.get_by_role("tab", name="Generate", exact=True).wait_for()
    tab = page.get_by_role("tab", name=name, exact=True)
    if tab.is_visible():
        tab.click()
    else:
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.locator(".buttons").wait_for()
    return panel


def paint(page: "Page", tab: "Locator", points: list[tuple[float, float]]) -> None:
    """Draw a stroke with the mouse through points of the picture, as shares of its width and height."""
    canvas = tab.locator(".board canvas")
    canvas.scroll_into_view_if_needed()
    tab.locator(".board:not(.empty)").wait_for()
    box = canvas.bounding_box()
    assert box is not None
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*at[0])
    page.mouse.down()
    for x, y in at[1:]:
        page.mouse.move(x, y, steps=6)
    page.mouse.up()
    tab.locator(".board.painted").wait_for()


def press(tab: "Locator") -> "Locator":
    """Start the tab's task, and wait for what comes of it."""
    tab.locator(".buttons button").first.click()
    done = tab.locator(".came .result.done")
    done.wait_for()
    return done


def main() -> None:
    """Take the README's pictures."""
    import bigr
    from bigr.app.gallery import find

    project, folder = Path(sys.argv[1]), Path(sys.argv[2])
    model, dataset = bigr.load(project), find(project / "data" / "shards")
    stroke = [(0.2, 0.62), (0.8, 0.62), (0.2, 0.78), (0.8, 0.78), (0.2, 0.93), (0.8, 0.93)]
    with tempfile.TemporaryDirectory() as uploads, serve(model, dataset, Path(uploads)) as address:
        for name, size, tab in (
            ("app-generate", LAPTOP, "Generate"),
            ("app-inpaint", LAPTOP, "Inpaint"),
            ("app-phone", PHONE, "Inpaint"),
        ):
            with browser.page(*size) as page:
                page.set_default_timeout(PATIENCE)
                panel = open_tab(page, address, tab)
                if tab == "Inpaint":
                    panel.locator(".examples button").nth(3).click()
                    page.wait_for_timeout(700)
                    paint(page, panel, stroke)
                press(panel)
                page.mouse.move(2, 2)
                if size == PHONE:  # all of it in sight: else the buttons stick where the window would end
                    height = page.evaluate("document.documentElement.scrollHeight")
                    page.set_viewport_size({"width": size[0], "height": height})
                page.wait_for_timeout(400)
                page.screenshot(path=folder / f"{name}.png", full_page=size == PHONE)


if __name__ == "__main__":
    main()
