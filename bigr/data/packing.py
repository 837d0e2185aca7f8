"""Packs an image folder into webdataset shards, by several processes.

The listing alone decides which image goes into which shard. Each shard is a job for the next free process, and its
bytes do not depend on the number of processes. An image that cannot be read is left out and named in `report.json`; if
there are too many, only the report is written, beside the folder, since DVC deletes the folder. Each process holds one
image at a time.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigr.data.images import ImageError, center_crop, decode, encode_png
from bigr.data.sources import SPLITS, Item, Source, printable
from bigr.runtime.errors import BigrError
from bigr.runtime.extras import require
from bigr.runtime.files import atomic_folder, sha256_file, write_json
from bigr.runtime.progress import Progress

log = logging.getLogger(__name__)

_NAMED = 5
"""Bad files that an error message names; the log names all."""
_IMAGES_PER_PROCESS = 1000
"""With fewer images a process takes longer to start than it saves."""


@dataclass(frozen=True)
class Job:
    """One shard to write. first: index in the split of the first item; keys count from it."""

    root: Path
    tar: Path
    split: str
    first: int
    items: list[Item]
    image_size: int
    max_pixels: int


@dataclass(frozen=True)
class Packed:
    """One written shard. class_counts: images of each label; bad: file and reason of each image left out."""

    split: str
    name: str
    images: int
    class_counts: Counter[int]
    sha256: str
    bad: list[tuple[str, str]]


def pack(
    source: Source,
    folder: Path,
    *,
    image_size: int,
    images_per_shard: int,
    max_bad_fraction: float,
    max_pixels: int,
    workers: int,
) -> dict[str, int]:
    """Write `<split>-NNNNNN.tar`, `index.json` and `report.json` to `folder`, atomically.

    image_size: of `center_crop`; max_pixels: an image of more pixels counts as unreadable, and is not decoded;
    workers: the most processes. Returns counts: images of each split, classes, shards, bad and ignored files.
    Raises `BigrError` if more than `max_bad_fraction` of the images cannot be read, or a class or split has no readable
    image; the report is then `<folder>-report.json`.
    """
    total = sum(map(len, source.items.values()))
    failed = folder.with_name(f"{folder.name}-report.json")
    failed.unlink(missing_ok=True)
    with atomic_folder(folder) as temporary:
        jobs = list(_jobs(source, temporary, image_size, images_per_shard, max_pixels))
        processes = min(workers, len(jobs), total // _IMAGES_PER_PROCESS)
        packed: list[Packed] = []
        with Progress("shards", total, unit="image") as progress:
            for shard in _in_processes(jobs, processes) if processes > 1 else map(write_shard, jobs):
                packed.append(shard)
                progress.advance(shard.images + len(shard.bad))
        bad = [entry for shard in packed for entry in shard.bad]
        for file, reason in bad:
            log.warning("%s: %s", source.root / file, reason)
        report = {
            "files": total,
            "bad": [{"file": printable(file), "reason": reason} for file, reason in bad],
            "bad_count": len(bad),
            "ignored_count": source.ignored,
        }
        try:
            _check(source, bad, total, max_bad_fraction)
        except BigrError as error:
            write_json(failed, report)
            raise BigrError(f"{error}; all are in the log and in {failed}") from None
        write_json(temporary / "report.json", report)
        packed = [shard for shard in packed if shard.images]
        index = _index(source, packed, image_size)
        write_json(temporary / "index.json", index)
    return {
        **{f"{split}_images": index["splits"][split]["images"] for split in SPLITS},
        "classes": len(source.classes),
        "shards": len(packed),
        "bad_files": len(bad),
        "ignored_files": source.ignored,
    }


def _jobs(source: Source, folder: Path, image_size: int, images_per_shard: int, max_pixels: int) -> Iterator[Job]:
    for split, items in source.items.items():
        for number, first in enumerate(range(0, len(items), images_per_shard)):
            tar = folder / f"{split}-{number:06d}.tar"
            mine = items[first : first + images_per_shard]
            yield Job(source.root, tar, split, first, mine, image_size, max_pixels)


def _check(source: Source, bad: list[tuple[str, str]], total: int, max_bad_fraction: float) -> None:
    if len(bad) > max_bad_fraction * total:
        named = "; ".join(f"{printable(file)} ({reason})" for file, reason in bad[:_NAMED])
        more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise BigrError(
            f"{len(bad)} of {total} images of {source.root} cannot be read, more than shards.max_bad_fraction = "
            f"{max_bad_fraction} allows; repair or remove them, or raise that setting: {named}{more}"
        )
    unreadable = {file for file, _ in bad}
    for split, items in source.items.items():
        readable = {label for file, label in items if file not in unreadable}
        if not readable:
            raise BigrError(f"shards.source: none of the {split} images of {source.root} can be read")
        for label, name in enumerate(source.classes):
            if split == "train" and label not in readable:
                raise BigrError(
                    f"shards.source: class {printable(name)!r} of {source.root} has no readable train image"
                )


def _index(source: Source, packed: list[Packed], image_size: int) -> dict[str, Any]:
    splits = {}
    for split in SPLITS:
        shards = [shard for shard in packed if shard.split == split]
        counts = sum((shard.class_counts for shard in shards), Counter())
        splits[split] = {
            "shards": [{"name": s.name, "images": s.images, "sha256": s.sha256} for s in shards],
            "images": sum(shard.images for shard in shards),
            "class_counts": [counts[label] for label in range(len(source.classes))],
        }
    return {"image_size": image_size, "classes": [printable(name) for name in source.classes], "splits": splits}


def write_shard(job: Job) -> Packed:
    """Decode, crop and write the images of one shard.

    The tar's headers hold neither time nor user, so that the same images give the same bytes.
    """
    require("train", "writing shards")
    from webdataset import TarWriter

    bad: list[tuple[str, str]] = []
    counts: Counter[int] = Counter()
    with job.tar.open("wb") as file:
        with TarWriter(file, user="bigr", group="bigr", mtime=0, encoder=False) as tar:
            for place, (path, label) in enumerate(job.items, start=job.first):
                try:
                    image = center_crop(decode(job.root / path, job.max_pixels), job.image_size)
                except ImageError as error:
                    bad.append((path, str(error)))
                else:
                    tar.write({"__key__": f"{place:09d}", "png": encode_png(image), "cls": str(label).encode()})
                    counts[label] += 1
        file.flush()
        os.fsync(file.fileno())
    if not counts:
        job.tar.unlink()
        return Packed(job.split, job.tar.name, 0, counts, "", bad)
    return Packed(job.split, job.tar.name, counts.total(), counts, sha256_file(job.tar), bad)


def _in_processes(jobs: list[Job], processes: int) -> Iterator[Packed]:
    context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
    pool = ProcessPoolExecutor(processes, context, _start_worker)
    try:
        yield from pool.map(write_shard, jobs)
    except BrokenProcessPool:
        raise BigrError(
            "a process that packs images was killed, perhaps because memory ran out; lower run.workers"
        ) from None
    except BaseException:
        for worker in multiprocessing.active_children():  # else each would finish its shard first
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C for all
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this, a worker would wait for ever for the next job of a parent that was killed."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        signal.raise_signal(signal.SIGKILL)
