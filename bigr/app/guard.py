"""What the server refuses before gradio sees it: bodies that are too large, and uploads when there are too many."""

from pathlib import Path
from typing import TYPE_CHECKING

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from bigr.app.bounds import MAX_BODY_BYTES, MAX_UPLOADS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_UPLOAD = "/upload"


class Guard:
    """An ASGI application around another one. folder: where uploads are kept."""

    def __init__(self, app: "ASGIApp", folder: Path) -> None:
        self.app, self.folder = app, folder

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Hand the request on, or answer 413 (too large) or 429 (too many files)."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            return await self.app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return await PlainTextResponse("a length is needed", 411)(scope, receive, send)
        if int(length) > MAX_BODY_BYTES:
            return await PlainTextResponse(f"larger than {MAX_BODY_BYTES >> 20} MB", 413)(scope, receive, send)
        if scope["path"].endswith(_UPLOAD) and self._files() >= MAX_UPLOADS:
            text = "Too many pictures were uploaded lately; try again in some minutes"
            return await PlainTextResponse(text, 429)(scope, receive, send)
        await self.app(scope, receive, send)

    def _files(self) -> int:
        return sum(1 for path in self.folder.rglob("*") if path.is_file())


def middleware(folder: Path) -> list[Middleware]:
    """The guard, as FastAPI takes it."""
    return [Middleware(Guard, folder=folder)]
