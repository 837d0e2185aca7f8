"""Starts and ends the page's server: on loopback by default, without connections to other machines."""

import logging
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigr.app import guard
from bigr.app.bounds import MAX_SESSIONS, MAX_UPLOAD_BYTES, MAX_WAITING
from bigr.runtime.ports import taken

if TYPE_CHECKING:
    import gradio as gr

    from bigr.app.gallery import Dataset
    from bigr.imaging.model import ImageModel

log = logging.getLogger(__name__)

QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}
"""The environment in which gradio makes no connections; it reads most of it when it is imported."""


def serve(
    model: "ImageModel", dataset: "Dataset | None", out: Path, host: str, port: int, allowed: Sequence[str] = ()
) -> None:
    """Serve the page until the process is interrupted. Uploads are kept below `out` while it runs.

    allowed: as in `bigr.app.guard.Hosts`. Raises `BigrError` where the port is taken.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="page-", dir=out) as folder:
        page = start(model, dataset, Path(folder), host, port, allowed)
        log.info("http://%s:%d  (Ctrl-C ends it)", host, port)
        if host not in guard.LOOPBACK:
            log.info("everyone who can reach %s can use this page", host)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def start(
    model: "ImageModel", dataset: "Dataset | None", folder: Path, host: str, port: int, allowed: Sequence[str] = ()
) -> "gr.Blocks":
    """Start the server in threads of its own; `close()` of what this returns ends it. Files go to `folder`."""
    os.environ.update(QUIET)
    os.environ["GRADIO_TEMP_DIR"] = str(folder.absolute())
    from starlette.middleware import Middleware

    from bigr.app.page import build
    from bigr.app.theme import CSS, SCRIPT, theme

    page = build(model, dataset)
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)
    guarded = Middleware(guard.Guard, folder=folder, hosts=guard.Hosts(host, allowed))
    settings: dict[str, Any] = {"docs_url": None, "redoc_url": None, "middleware": [guarded]}
    try:
        page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            inbrowser=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            pwa=False,
            ssr_mode=False,
            mcp_server=False,
            max_file_size=MAX_UPLOAD_BYTES,
            state_session_capacity=MAX_SESSIONS,
            app_kwargs=settings,
            theme=theme(),
            css_paths=CSS,
            js=SCRIPT.read_text(encoding="utf-8"),
        )
    except OSError:
        page.close(verbose=False)
        raise taken(host, port) from None
    return page
