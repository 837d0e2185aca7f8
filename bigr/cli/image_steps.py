"""The iterations of a call: counted on the terminal, and drawn as a strip and an animation."""

import sys
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from bigr.cli.image_files import Folder, say_also
from bigr.runtime.extras import require
from bigr.runtime.progress import Progress

if TYPE_CHECKING:
    from bigr.imaging.frames import Frame


class StepRecorder:
    """Counts the iterations of a call on the terminal, and keeps them where they are to be traced."""

    def __init__(self, name: str, trace: bool) -> None:
        if trace:
            require("evaluation", "--trace")
        self._name, self._trace = name, trace
        self._frames: list[Frame] = []
        self._progress: Progress | None = None

    def __enter__(self) -> "StepRecorder":
        return self

    def __exit__(self, *about: object) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)

    @property
    def on_step(self) -> "Callable[[Frame], None] | None":
        """What the model is to call after each iteration; None where there is neither a terminal nor a trace."""
        return self._record if self._trace or sys.stderr.isatty() else None

    def _record(self, frame: "Frame") -> None:
        if self._progress is None:
            self._progress = Progress(self._name, frame.of, unit="iteration", enabled=sys.stderr.isatty())
        self._progress.advance()
        if self._trace:
            self._frames.append(frame)

    def draw(self, folder: Folder, stems: Sequence[str], *, windows: bool = False) -> None:
        """Write a strip and an animation for each picture of the call (of each window, where there are several)."""
        if not self._frames:
            return
        from bigr.imaging.trace import episodes

        together = len(self._frames[0].pictures)
        batches = ceil(len(stems) / together)
        ended = episodes(self._frames)
        each = len(ended) // batches
        written: list[Path] = []
        for place, stem in enumerate(stems):
            batch, image = divmod(place, together)
            if windows:  # window by window, and within each batch by batch
                parts = ended[batch::batches]
            else:
                parts = [[frame for part in ended[batch * each : (batch + 1) * each] for frame in part]]
            for number, part in enumerate(parts, start=1):
                name = f"{stem}-window{number}" if len(parts) > 1 else stem
                written += folder.trace(name, part, image)
        say_also(written[0], f"the order of the tokens; {len(written)} files *-trace.png and .gif in all")
