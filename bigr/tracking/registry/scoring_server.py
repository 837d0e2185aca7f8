"""The web service of one version: MLflow's scoring server behind checks that it does not make.

A request with an unknown key is refused. Sampling stops when the client disconnects, when MLflow's time limit
(MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT) is over, or when the server is stopped.
"""

import asyncio
import json
import os
import tempfile
import threading
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigr.runtime.errors import BigrError
from bigr.tracking.registry.stopping import abandoned
from bigr.tracking.registry.versions import Registry
from bigr.tracking.store import DEFAULTS, Store, asking

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

INPUTS = ("inputs", "instances", "dataframe_split", "dataframe_records")
"""The formats of MLflow's scoring protocol; a request has one of them."""
MAX_BODY_BYTES = 2**20
"""The largest body of a request: labels are short, and their number is bounded."""
GRACE_S = 5
"""Seconds that running requests have to finish when the server is stopped."""


def serve(source: str, root: Path, host: str, port: int) -> None:
    """Serve a version until the process is interrupted or terminated. Raises `BigrError` where there is none.

    source: `models:/bigr@champion`, `models:/bigr/3`, or a folder that MLflow downloaded a version to.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = _loaded(source, root, Path(folder))
    import uvicorn

    uvicorn.run(application(model), host=host, port=port, timeout_graceful_shutdown=GRACE_S)


def application(model: "PyFuncModel") -> App:
    """The ASGI application that serves `model`."""
    from mlflow.pyfunc import scoring_server

    schema = model.metadata.get_params_schema()
    return _Requests(scoring_server.init(model), [param.name for param in schema.params] if schema else [])


def _loaded(source: str, root: Path, folder: Path) -> "PyFuncModel":
    os.environ.update({name: value for name, value in DEFAULTS.items() if name not in os.environ})
    with asking(root):
        if (Path(source) / "MLmodel").is_file():
            package = Path(source)
        elif source.startswith("models:/"):
            registry = Registry(Store(root))
            package = registry.fetch(registry.named(source), folder)
        else:
            raise BigrError(f"{source}: no version there; name one as models:/bigr@champion or models:/bigr/3")
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc import load_model

    try:
        return load_model(str(package))
    except (ImportError, MlflowException) as error:
        raise BigrError(
            f"{source}: its code does not run with this version of bigr ({' '.join(str(error).split())}); `dvc repro "
            "--force --single-item evaluation` registers the present model anew"
        ) from None


class _Requests:
    """Checks a request's keys before MLflow reads them, and stops sampling when the client has disconnected."""

    def __init__(self, app: App, params: Collection[str]) -> None:
        self.app, self.params = app, params

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/invocations":
            await self.app(scope, receive, send)
            return
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                await _refuse(send, 413, f"the request must have at most {MAX_BODY_BYTES} bytes")
                return
            if not message.get("more_body", False):
                break
        kind = dict(scope["headers"]).get(b"content-type", b"").split(b";")[0].strip()
        if kind == b"application/json" and (wrong := self._wrong(bytes(body))):
            await _refuse(send, 400, wrong)
            return
        await self._watched(scope, bytes(body), receive, send)

    def _wrong(self, body: bytes) -> str | None:
        """What is wrong with the form of a request, in one sentence, or None; `served.py` checks the labels."""
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            return 'the request must be JSON, as {"inputs": [3, 7], "params": {"seed": 1}}'
        if not isinstance(asked, dict) or sum(name in asked for name in INPUTS) != 1:
            return 'the request must be an object with one list of labels, as {"inputs": [3, 7]}'
        if unknown := asked.keys() - {*INPUTS, "params"}:
            return f'{_named(unknown)}: no such key; there are inputs and params, as {{"inputs": [3], "params": {{}}}}'
        params = asked.get("params")
        if params is not None and not isinstance(params, dict):
            return 'params must be an object, as {"seed": 1}'
        if unknown := (params or {}).keys() - set(self.params):
            return f"params: {_named(unknown)}: no such parameter; there are {', '.join(self.params)}"
        return None

    async def _watched(self, scope: MutableMapping[str, Any], body: bytes, receive: Receive, send: Send) -> None:
        ended = threading.Event()

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            ended.set()

        watcher = asyncio.create_task(watch())
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            if unread:
                return unread.pop()
            await asyncio.wait([watcher])
            return {"type": "http.disconnect"}

        abandoned.set(ended)  # of this request's task alone; MLflow's thread gets a copy
        try:
            await self.app(scope, replay, send)
        except asyncio.CancelledError:  # the server stops; MLflow sends whole responses, so nothing is sent yet
            await _refuse(send, 503, "the server is stopping")
        finally:  # answered, timed out, or cancelled
            ended.set()
            watcher.cancel()


def _named(keys: Collection[str]) -> str:
    return ", ".join(sorted(key[:40] for key in keys)[:5])


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"error_code": "BAD_REQUEST", "message": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
