"""Long work in parts: the finished parts of a run that was killed are kept, and are not made again."""

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from bigr.runtime.distributed import by_first
from bigr.runtime.errors import BigrError

_NOTE = "fingerprint"


def keep_parts(folder: Path, fingerprint: str) -> None:
    """Make `folder` for the parts of one stage; parts that were made under another fingerprint are removed,
    and all of them where it is "": nothing is known about them.

    Called in every process; the first does it. The folder must be the same in all of them.
    """

    def prepare() -> None:
        note = folder / _NOTE
        if not (fingerprint and note.is_file() and note.read_text() == fingerprint):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            note.write_text(fingerprint)

    by_first(prepare)


def remove_parts(folder: Path) -> None:
    """Remove the parts of a stage that has finished, and the folder above where no other stage has parts there."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def become(parts: Path, folder: Path) -> None:
    """Make the finished parts the content of `folder`, in place of what was there. Moves them, where a disk allows."""
    (parts / _NOTE).unlink()
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(parts, folder)
    remove_parts(parts)


def check_parts(folder: Path, names: Iterable[str]) -> None:
    """Raise `BigrError` where a part is missing that another process wrote, to a folder of its own machine."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise BigrError(
            f"{folder / missing[0]} is missing, which another process wrote: all machines must share {folder}"
        )
