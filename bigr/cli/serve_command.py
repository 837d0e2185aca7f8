"""`bigr serve`: a version of the registry as a web service."""

from pathlib import Path
from typing import Annotated

import typer


def serve(
    model: Annotated[
        str, typer.Option(metavar="SOURCE", help="A version, as models:/bigr/3, or a downloaded one's folder.")
    ] = "models:/bigr@champion",
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; the default is this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="PORT")] = 5001,
) -> None:
    """Answer labels with images of the champion, over HTTP.

    docs/registry.md describes the protocol. There is no password.
    Sampling stops when the client disconnects. Ctrl-C or SIGTERM stops the server.
    """
    from bigr.runtime.ports import check_port
    from bigr.tracking.registry import scoring_server

    check_port(host, port, "bigr serve")
    scoring_server.serve(model, Path.cwd(), host, port)
