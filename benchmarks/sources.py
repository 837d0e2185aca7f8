"""Memory and rate of listing and packing many images.

    python -m benchmarks sources --images 1000000

Makes images of 16×16 pixels: a folder of hard links to a few files, webdataset files, parquet files, an `.npz`. A
process of its own lists and packs each. Memory is the most that the process, or the largest of its workers, held.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

SIDE = 16
CLASSES = 1000
KINDS = ("folder", "manifest", "tar", "parquet", "npz")
_FILES = 100
"""Tar and parquet files."""
_LINKS = 20_000
"""Hard links to one file, at most."""


def main(
    images: Annotated[int, typer.Option(help="Generated images.")] = 1_000_000,
    kinds: Annotated[str, typer.Option(help="Of the sources, with commas.")] = ",".join(KINDS),
    pack: Annotated[bool, typer.Option(help="Pack them too, not only list them.")] = True,
    workers: Annotated[int, typer.Option(help="Processes that pack.")] = 2,
    folder: Annotated[Path, typer.Option(help="Where the images go; removed at the end.")] = Path("outputs/sources"),
) -> None:
    """Measure."""
    typer.echo("kind       images   listed in   memory  packed in    images/s   memory  of a worker")
    for kind in kinds.split(","):
        place = folder / kind
        shutil.rmtree(place, ignore_errors=True)
        try:
            source = MAKERS[kind](place, images)
            command = [sys.executable, "-m", "benchmarks.sources", str(source), str(place), str(int(pack) * workers)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            line = f"{kind:9} {images:>9,} {found['listed_s']:>8.1f} s {found['listed_mb']:>5.0f} MB"
            if pack:
                rate = images / found["packed_s"]
                line += f" {found['packed_s']:>8.1f} s {rate:>11,.0f} {found['packed_mb']:>5.0f} MB"
                line += f" {found['worker_mb']:>9.0f} MB"
            typer.echo(line)
        finally:
            shutil.rmtree(place, ignore_errors=True)


def png(value: int) -> bytes:
    """A small picture."""
    from PIL import Image

    pixels = np.random.default_rng(value).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    with io.BytesIO() as stream:
        Image.fromarray(pixels).save(stream, "PNG")
        return stream.getvalue()


def _folder(place: Path, images: int) -> Path:
    originals = place / "originals"
    originals.mkdir(parents=True)
    for number in range(-(-images // _LINKS)):
        (originals / f"{number}.png").write_bytes(png(number))
    root = place / "images"
    for label in range(min(CLASSES, images // 2)):
        (root / f"n{label:08d}").mkdir(parents=True)
    for number in range(images):
        label = number % min(CLASSES, images // 2)
        os.link(originals / f"{number // _LINKS}.png", root / f"n{label:08d}" / f"n{label:08d}_{number}.png")
    return root


def _manifest(place: Path, images: int) -> Path:
    from bigr.data.sources.opened import manifest_of, open_source
    from bigr.data.sources.source import Splitting

    path = place / "manifest.arrow"
    manifest_of(open_source(str(_folder(place, images)), Path(), Splitting(0.1, 0))).save(path)
    return path


def _tar(place: Path, images: int) -> Path:
    root = place / "tars"
    root.mkdir(parents=True)
    pictures = [png(number) for number in range(100)]
    for number in range(_FILES):
        with tarfile.open(root / f"{number:06d}.tar", "w") as tar:
            for image in range(number * images // _FILES, (number + 1) * images // _FILES):
                for suffix, data in (("png", pictures[image % 100]), ("cls", str(image % CLASSES).encode())):
                    member = tarfile.TarInfo(f"{image:09d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return root


def _parquet(place: Path, images: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = place / "parquet"
    root.mkdir(parents=True)
    pictures = [png(number) for number in range(100)]
    for number in range(_FILES):
        mine = range(number * images // _FILES, (number + 1) * images // _FILES)
        rows = [{"bytes": pictures[image % 100], "path": None} for image in mine]
        table = pa.table({"image": rows, "label": [image % CLASSES for image in mine]})
        pq.write_table(table, root / f"train-{number:05d}.parquet", row_group_size=1000)
    return root


def _npz(place: Path, images: int) -> Path:
    place.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (images, SIDE, SIDE, 3), dtype=np.uint8)
    np.savez(place / "images.npz", x_train=pixels, y_train=np.arange(images) % CLASSES)
    return place / "images.npz"


MAKERS: dict[str, Callable[[Path, int], Path]] = {
    "folder": _folder,
    "manifest": _manifest,
    "tar": _tar,
    "parquet": _parquet,
    "npz": _npz,
}


def _most(process: int | str = "self") -> float:
    """Peak memory of a process in 10⁶ bytes. (`ru_maxrss` would count the process that started it.)"""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0) * 1024 / 1e6


def _watch(found: dict[str, float], ended: threading.Event) -> None:
    """Keep the peak memory of the largest process that this one has started."""
    while not ended.wait(1):
        with contextlib.suppress(OSError):  # one has just ended
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split():
                found["worker_mb"] = max(found["worker_mb"], _most(child))


def _measure(source: str, place: Path, workers: int) -> dict[str, float]:
    from bigr.data.packed_parts import Packing
    from bigr.data.packing import pack
    from bigr.data.sources.opened import open_source
    from bigr.data.sources.source import Splitting

    before = time.monotonic()
    opened = open_source(source, Path(), Splitting(0.1, 0))
    opened.prepare(place / "partial")
    opened.parts(1000)
    found = {"listed_s": time.monotonic() - before, "listed_mb": _most()}
    if workers:
        found["worker_mb"], ended = 0.0, threading.Event()
        threading.Thread(target=_watch, args=(found, ended), daemon=True).start()
        before = time.monotonic()
        packing = Packing(SIDE, 1000, 1000)
        pack(opened, place / "shards", place / "partial", packing, max_bad_fraction=0, workers=workers)
        found |= {"packed_s": time.monotonic() - before, "packed_mb": _most()}
        ended.set()
    return found


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
