"""Chromium for tests that look at a page: an empty profile, no calls home, skipped where there is none."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")


@contextmanager
def page(width: int = 1600, height: int = 1200) -> "Iterator[Page]":
    """A blank page that can reach nothing but loopback."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium is installed (on Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *QUIET])
        try:
            context = browser.new_context(viewport={"width": width, "height": height})
            context.route(
                lambda url: not url.startswith(("http://127.0.0.1", "data:", "blob:")), lambda route: route.abort()
            )
            yield context.new_page()
        finally:
            browser.close()
