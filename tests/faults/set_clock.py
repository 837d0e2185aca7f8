"""A clock that is set while programs run: libfaketime tells them another time of day, and the machine's stays."""

import os
from pathlib import Path

from tests import preloaded

HOUR = 3600

LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
MISSING = "" if LIBRARY else "libfaketime is not installed: apt-get install faketime"

_SITE = """\
import os, select, time
from pathlib import Path

import psutil

time.sleep = lambda seconds: select.select([], [], [], seconds) and None  # libfaketime 0.9.10 fails in Python's own
boot, offset = psutil._pslinux.boot_time, Path(os.environ["FAKETIME_TIMESTAMP_FILE"])
psutil._pslinux.boot_time = lambda: boot() + float(offset.read_text())  # Linux moves it when the clock is set
"""


class Clock:
    """The time of day of all programs that have `environment`. Times of files stay those of the machine.

    folder: empty, for its files; site: the folder of Python's modules that they read first.
    """

    def __init__(self, folder: Path, site: Path | None = None) -> None:
        assert LIBRARY
        folder.mkdir(exist_ok=True)
        self._offset = folder / "offset"
        self.set(0)
        site = site or folder
        (site / "sitecustomize.py").write_text(_SITE)
        self.environment = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
            "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
            preloaded.VARIABLE: "",  # no forks of a process that has the machine's time
        }

    def set(self, seconds: int) -> None:
        """Set it to so many seconds after the machine's."""
        beside = self._offset.with_suffix(".new")
        beside.write_text(f"{seconds:+d}\n")
        beside.replace(self._offset)
