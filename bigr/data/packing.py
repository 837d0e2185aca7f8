"""Packs a source of images into webdataset shards, by several processes.

Each part of the source is a job for the next free process, and the bytes that it writes do not depend on the number of
processes. A finished part is kept in a folder for the work in progress, with a note of what it was made of; a run that
was killed packs only the other parts. Processes that torchrun started share the parts. An image that cannot be read is
left out and named in `report.json`; if there are too many, only the report is written, beside the folder, since DVC
deletes the folder. Each process holds one image at a time.
"""

import functools
import logging
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigr.data.packed_parts import PackedPart, Packing, Written, finished_part, pack_part
from bigr.data.sources.source import SPLITS, Source, SourcePart
from bigr.runtime.distributed import barrier, by_first, is_main, rank, world
from bigr.runtime.errors import BigrError
from bigr.runtime.files import atomic_folder, write_json
from bigr.runtime.paths import printable
from bigr.runtime.progress import Progress

log = logging.getLogger(__name__)

_NAMED = 5
"""Bad files that an error message names; the log names all."""
_IMAGES_PER_PROCESS = 1000
"""With fewer images a process takes longer to start than it saves."""


def pack(
    source: Source, folder: Path, partial: Path, packing: Packing, *, max_bad_fraction: float, workers: int
) -> dict[str, int]:
    """Write the shards, `index.json` and `report.json` to `folder`, atomically.

    partial: holds finished parts until all are there; workers: the most processes of each process of torchrun. Returns
    counts: images of each split, classes, shards, captions, bad and ignored files. Raises `BigrError` if more than
    `max_bad_fraction` of the images cannot be read, or a class or split has no readable image; the report is then
    `<folder>-report.json`.
    """
    failed = folder.with_name(f"{folder.name}-report.json")
    if is_main():
        failed.unlink(missing_ok=True)
    partial.mkdir(parents=True, exist_ok=True)
    names = _named(source.parts(packing.images_per_shard))
    mine = [(part, partial / name) for name, part in names.items()][rank() :: world()]
    known = [part.images for part, _ in mine]
    total = None if None in known else sum(number or 0 for number in known)
    images = len(mine) * packing.images_per_shard if total is None else total
    processes = min(workers, len(mine), max(1, images // _IMAGES_PER_PROCESS))
    with Progress("shards", total, unit="image", enabled=is_main()) as progress:
        work = functools.partial(pack_part, source, packing)
        for done in _in_processes(source, packing, mine, processes) if processes > 1 else map(work, mine):
            progress.advance(done.images)
    barrier()

    def assembled() -> dict[str, int]:
        packed = [finished_part(partial / name) for name in names]
        counts = _assembled(source, folder, partial, packed, packing, max_bad_fraction, failed)
        shutil.rmtree(partial, ignore_errors=True)
        return counts

    return by_first(assembled)


def _named(parts: Iterable[SourcePart]) -> dict[str, SourcePart]:
    """Parts by the names of their shards: the split, where there is one, and a number."""
    numbers = Counter[str]()
    found = {}
    for part in parts:
        prefix = part.split or "part"
        found[f"{prefix}-{numbers[prefix]:06d}"] = part
        numbers[prefix] += 1
    return found


def _assembled(
    source: Source,
    folder: Path,
    partial: Path,
    packed: list[PackedPart],
    packing: Packing,
    max_bad_fraction: float,
    failed: Path,
) -> dict[str, int]:
    """Check all parts, and move their shards to `folder`."""
    total = sum(part.images for part in packed)
    bad = [entry for part in packed for entry in part.bad]
    for file, reason in bad:
        log.warning("%s: %s", _below(source, file), reason)
    report = {
        "files": total,
        "bad": [{"file": file, "reason": reason} for file, reason in bad],
        "bad_count": len(bad),
        "ignored_count": source.ignored,
    }
    shards = [shard for part in packed for shard in part.shards]
    shards.sort(key=lambda shard: SPLITS.index(shard.split))  # of each split in the order of the parts
    try:
        classes = _checked(source, shards, bad, total, max_bad_fraction)
    except BigrError as error:
        write_json(failed, report)
        raise BigrError(f"{error}; all are in the log and in {failed}" if bad else str(error)) from None
    with atomic_folder(folder) as temporary:
        for shard in shards:
            if shard.packed:
                (partial / shard.name).replace(temporary / shard.name)
        write_json(temporary / "report.json", report)
        write_json(temporary / "index.json", _index(shards, classes, packing.image_size, folder))
    captions = sum(shard.captions for shard in shards)
    return {
        **{f"{split}_images": sum(shard.images for shard in shards if shard.split == split) for split in SPLITS},
        "classes": len(classes),
        "shards": len(shards),
        **({"captions": captions} if captions else {}),
        "bad_files": len(bad),
        "ignored_files": source.ignored,
    }


def _below(source: Source, file: str) -> str:
    return f"{source.where.rstrip('/')}/{file}"


def _checked(
    source: Source, shards: list[Written], bad: list[tuple[str, str]], total: int, max_bad_fraction: float
) -> list[str]:
    """The names of the classes; `BigrError` where too many images cannot be read, or none of a class or split."""
    if len(bad) > max_bad_fraction * total:
        named = "; ".join(f"{file} ({reason})" for file, reason in bad[:_NAMED])
        more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise BigrError(
            f"{len(bad)} of {total} images of {source.where} cannot be read, more than shards.max_bad_fraction = "
            f"{max_bad_fraction} allows; repair or remove them, or raise that setting: {named}{more}"
        )
    counts: dict[str, Counter[int]] = {split: Counter() for split in SPLITS}
    for shard in shards:
        counts[shard.split].update(shard.class_counts)
    for split in SPLITS:
        if not counts[split]:
            why = "can be read" if bad else "are there"
            remedy = ", or raise shards.val_fraction" if split == "val" else ""
            raise BigrError(f"shards.source: none of the {split} images of {source.where} {why}; add some{remedy}")
    names = source.classes
    remedy = "" if names is not None else ", or number the classes from 0 without gaps"
    number = len(names) if names is not None else 1 + max(max(labels) for labels in counts.values())
    for label in range(number):  # before that many names are made, since a wrong label may be any number
        if not counts["train"][label]:
            name = printable(names[label]) if names is not None else str(label)
            what = f"class {name!r} of {source.where} has no readable train image"
            raise BigrError(f"shards.source: {what}; add some{remedy}")
    return [printable(name) for name in names] if names is not None else [str(label) for label in range(number)]


def _index(shards: list[Written], classes: list[str], image_size: int, folder: Path) -> dict[str, Any]:
    splits = {}
    for split in SPLITS:
        mine = [shard for shard in shards if shard.split == split]
        counts = sum((Counter(shard.class_counts) for shard in mine), Counter())
        captions = sum(shard.captions for shard in mine)
        splits[split] = {
            "shards": [
                {"name": _from(folder, s.name), "images": s.images, "sha256": s.sha256}
                | ({} if s.size is None else {"size": s.size})
                for s in mine
            ],
            "images": sum(shard.images for shard in mine),
            "class_counts": [counts[label] for label in range(len(classes))],
            **({"captions": captions} if captions else {}),
        }
    return {"image_size": image_size, "classes": classes, "splits": splits}


def _from(folder: Path, name: str) -> str:
    """A shard's file as the index names it: relative to its folder where both are below the project's."""
    project = folder.absolute().parent.parent
    path = Path(name)
    return os.path.relpath(path, folder.absolute()) if path.is_absolute() and path.is_relative_to(project) else name


# Processes

_work: tuple[Source, Packing] | None = None
"""Of a process that packs: what all its jobs have in common."""


def _in_processes(
    source: Source, packing: Packing, jobs: list[tuple[SourcePart, Path]], processes: int
) -> Iterator[PackedPart]:
    context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
    pool = ProcessPoolExecutor(processes, context, _start_worker, (source, packing))
    try:
        with _interrupts_held():  # the parent handles Ctrl-C for all
            packed = pool.map(_pack_job, jobs)
        yield from packed
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


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block. Processes that are started in it never see one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(source: Source, packing: Packing) -> None:
    global _work
    _work = source, packing
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _pack_job(job: tuple[SourcePart, Path]) -> PackedPart:
    assert _work is not None
    return pack_part(*_work, job)


def _end_with_parent() -> None:
    """Without this, a worker would wait for ever for the next job of a parent that was killed."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        signal.raise_signal(signal.SIGKILL)
