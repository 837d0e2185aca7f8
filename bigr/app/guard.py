"""Requests that are refused before gradio sees them: those of other sites, addresses to fetch, and too large ones.

Every web page that the user opens can reach a server on loopback. So a request must name this server in `Host`, against
names that point to 127.0.0.1, and not come from another site (`Origin`). gradio fetches files that a request names by
URL, to disk and without the limits of uploads: no request may name one.
"""

import ipaddress
import json
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse

from bigr.app.bounds import MAX_BODY_BYTES, MAX_UPLOADS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
EVERYWHERE = frozenset({"0.0.0.0", "::"})
"""Addresses to listen on that stand for all of the machine's."""

_API = "/gradio_api"
_UPLOAD = f"{_API}/upload"
_POSTED = {_UPLOAD, *(f"{_API}/{name}" for name in ("queue/join", "run/predict", "cancel", "reset"))}
"""The paths that the page posts to; POST is refused on every other path."""

_AUTHORITY = re.compile(r"([\w.-]+|\[[0-9a-f:.]+\])(?::\d*)?", re.ASCII | re.IGNORECASE)

_OF_FILES = ("path", "url")
"""The keys under which a request names a file."""


class Hosts:
    """The names and addresses that a request's `Host` may have.

    Those of loopback, the address that the server listens on, and `allowed`. If it listens on all addresses, also the
    machine's name and every numeric address: an attacker can point a name to this machine, but not a number.
    """

    def __init__(self, listening: str, allowed: Iterable[str] = ()) -> None:
        self.allowed = {_plain(name) for name in allowed}
        self._any_number = _plain(listening) in EVERYWHERE
        self._names = LOOPBACK | {_plain(listening)} | self.allowed
        if self._any_number:
            name = _plain(socket.gethostname())
            self._names |= {name, f"{name}.local"}

    def __contains__(self, name: str) -> bool:
        return name in self._names or (self._any_number and _is_number(name))


class Guard:
    """An ASGI application around another one. folder: where uploads are kept; hosts: the valid names."""

    def __init__(self, app: "ASGIApp", folder: Path, hosts: Hosts) -> None:
        self.app, self.folder, self.hosts = app, folder, hosts

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass the request on, or refuse it with 400, 403, 404, 405, 411, 413 or 429 and a line of text."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        try:
            authority = self._site(scope)
            if scope["type"] == "websocket":
                raise HTTPException(403, "The page has no websockets")
            if "://" in scope["path"] or scope["path"].removeprefix(_API).startswith("/proxy="):
                raise HTTPException(400, "Nothing is fetched from elsewhere")
            if scope["method"] not in ("GET", "HEAD"):
                self._check_post(scope)
                if scope["path"] != _UPLOAD:
                    receive = await _read(receive, authority)
        except HTTPException as refusal:
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008, "reason": refusal.detail})
            return await PlainTextResponse(refusal.detail, refusal.status_code)(scope, receive, send)
        await self.app(scope, receive, send)

    def _site(self, scope: "Scope") -> str:
        """The name and port in `Host`. Raises `HTTPException` where they, or the request's origin, are not valid."""
        named = _header(scope, b"host")
        authority = named[0].lower() if len(named) == 1 else ""
        name = _name(authority)
        if not name:
            raise HTTPException(400, "The header Host must be one name or address")
        if name not in self.hosts:
            raise HTTPException(403, f"Not served as {name}; if it is to be, start with: bigr app --allow-host {name}")
        for origin in _header(scope, b"origin"):
            site = urlsplit(origin).netloc.lower()
            if site != authority and _name(site) not in self.hosts.allowed:
                raise HTTPException(403, f"A page of {origin!r} may not use this one")
        return authority

    def _check_post(self, scope: "Scope") -> None:
        path = scope["path"].rstrip("/")
        if scope["method"] != "POST":
            raise HTTPException(405, "GET, HEAD and POST are answered")
        if path not in _POSTED:
            raise HTTPException(404, "Nothing is sent there")
        length = "".join(_header(scope, b"content-length"))
        if not length.isdigit():
            raise HTTPException(411, "A length is needed")
        if int(length) > MAX_BODY_BYTES:
            raise HTTPException(413, f"Larger than {MAX_BODY_BYTES >> 20} MB")
        if path == _UPLOAD and sum(path.is_file() for path in self.folder.rglob("*")) >= MAX_UPLOADS:
            raise HTTPException(429, "Too many pictures were uploaded lately; try again in some minutes")


async def _read(receive: "Receive", authority: str) -> "Receive":
    """The body of an event, checked to name no file by its URL except those uploaded to `authority`, to be received
    again.
    """
    parts: list[bytes] = []
    message = await receive()
    while message["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            break
        message = await receive()
    body = b"".join(parts)

    def look(pairs: list[tuple[str, Any]]) -> None:
        for key, value in pairs:
            if key in _OF_FILES and isinstance(value, str) and _is_elsewhere(value, authority, key):
                raise HTTPException(400, "A file must be uploaded; none is fetched from its address")

    try:
        json.loads(body, object_pairs_hook=look)
    except (ValueError, RecursionError):
        raise HTTPException(400, "Not JSON") from None
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> "Message":
        return whole.pop() if whole else await receive()

    return again


def _is_elsewhere(value: str, authority: str, key: str) -> bool:
    """Whether a file's `path` or `url` is a URL other than that of an upload to this page."""
    if "://" not in value and not value.startswith(("//", "\\\\")):
        return False
    parts = urlsplit(value)
    return key != "url" or parts.netloc.lower() != authority or not parts.path.startswith(f"{_API}/file=")


def _header(scope: "Scope", name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key.lower() == name]


def _name(authority: str) -> str:
    """The host in `host:port`, as `Hosts` has it; empty where it is none."""
    found = _AUTHORITY.fullmatch(authority)
    return "" if found is None else _plain(found[1])


def _plain(name: str) -> str:
    """A host in the form that is compared: lower case, without brackets; an address as Python writes it."""
    bare = name.lower().strip("[]").removesuffix(".")
    return str(ipaddress.ip_address(bare)) if _is_number(bare) else bare


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
