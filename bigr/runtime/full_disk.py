"""Whether an error is that of a full disk, in words for a user."""

import errno
import shutil
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a disk, or a user's share of one, that is full."""
_ALMOST_NONE = 2**16


def full_disk(error: Exception, folder: Path) -> str | None:
    """What to tell a user whose disk is full; None where `error` has another cause.

    folder: where the command works. Libraries raise errors of their own kinds (SQLite: "disk I/O error"): so any error
    beside a disk without room counts.
    """
    known = isinstance(error, OSError) and error.errno in NO_ROOM
    if not known and "No space left on device" not in str(error) and shutil.disk_usage(folder).free >= _ALMOST_NONE:
        return None
    what = " ".join(str(error).split()) or type(error).__name__
    return f"the disk is full ({what}); make room, and start the same command again: what is finished is kept"
