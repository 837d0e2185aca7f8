"""`bigr app`: the model in the browser."""

import logging
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

INTERRUPTED = 128 + signal.SIGINT


def serve(
    model: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="A project's folder, one with tokenizer/ and bigr/, or a version: models:/bigr@champion.",
        ),
    ] = ".",
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; the default is this machine alone.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="PORT")] = 7860,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name by which the page may be asked for, as behind a proxy."),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Uploads are kept below it while the page is served.")
    ] = Path("outputs/app"),
    params: Annotated[
        Path | None, typer.Option("--params", metavar="FILE", help="The sampler's settings, else the model's own.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Shards with examples and pictures to compare with, else the project's."),
    ] = None,
) -> None:
    """Serve a page that does all that the model can.

    Generate, inpaint, outpaint, edit, interpolate, enrich, compare.

    It listens on this machine alone unless --host names another address, and answers to this machine's names and those
    of --allow-host. It loads nothing from other hosts, and writes below --out alone. Ctrl-C stops it.
    """
    import bigr
    from bigr.app import gallery, server
    from bigr.runtime.ports import check_port

    check_port(host, port)
    loaded = bigr.load(model, params=params)
    there = gallery.Dataset(data) if data is not None else gallery.find(Path(model) / "data" / "shards")
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that uploads are removed where the terminal is closed
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)
    try:
        server.serve(loaded, there, out, host, port, allow_host or ())
    except KeyboardInterrupt:  # at once: torch aborts where the interpreter ends before a thread that samples
        logging.shutdown()
        os._exit(INTERRUPTED)
