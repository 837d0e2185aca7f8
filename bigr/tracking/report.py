"""A stage's report (`bigr.runtime.context.Report`) that goes to MLflow."""

import io
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bigr.evaluation.headline import in_words
from bigr.runtime.context import Report
from bigr.runtime.dotted_keys import flatten
from bigr.tracking import executions
from bigr.tracking.machine import MachineMonitor
from bigr.tracking.mailbox import Mailbox
from bigr.tracking.store import Store, permanent, read_tags, shown, tag_name, uploading

if TYPE_CHECKING:
    from bigr.config import Settings

_MADE_ON_THE_WAY = (("models",), ("outputs",))
"""Folders of what stages hand to each other: no input of the whole execution."""


class _Point(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int
    final: bool


class Tracker(Report):
    """Records one run of one stage, from its creation to `finish`. Only `finish` waits for MLflow.

    root: the project folder; inputs: path → DVC hash of everything that the stage reads; about: what it does, in words;
    shares: "metrics" and "pictures" where the parent run shows those too.
    """

    def __init__(
        self,
        root: Path,
        stage: str,
        settings: "Settings",
        inputs: Mapping[str, str],
        about: str = "",
        shares: Collection[str] = (),
    ) -> None:
        self.root, self.stage = root, stage
        self._settings, self._inputs, self._about, self._shares = flatten(settings.model_dump()), inputs, about, shares
        trains = hasattr(getattr(settings, stage, None), "trains")
        self._purpose = "training" if trains else stage  # of the inputs, in MLflow's words
        self._results: dict[str, float] = {}
        self._last_step = self._last_time = 0
        self._store: Store
        self._run = self._parent = ""
        self._mail = Mailbox(shown(root), self._log_points, permanent)
        self._mail.call(self._open)
        self._mail.call(self._log_inputs)
        self._machine = MachineMonitor(self._measured)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        # MLflow shows the point of the highest step, then the latest, then the largest: final metrics go to the last
        # step, and no two reports have the same time.
        self._last_step = max(self._last_step, step or 0)
        self._last_time = max(self._last_time + 1, int(time.time() * 1000))
        at = self._last_step if step is None else step
        if step is None:
            self._results |= values
        for key, value in values.items():
            self._mail.point(_Point(tag_name(key), float(value), self._last_time, at, final=step is None))

    def _measured(self, values: Mapping[str, float], number: int) -> None:
        for key, value in values.items():
            self._mail.point(_Point(key, value, int(time.time() * 1000), number, final=False))

    def picture(self, name: str, path: Path, step: int | None = None) -> None:
        content, name = path.read_bytes(), tag_name(name)
        if step is None:
            self._mail.call(lambda: self._log_picture(f"{name}{path.suffix}", content), len(content))
        else:
            self._mail.call(lambda: self._log_frame(name, content, step), len(content))

    def finish(self, status: str, outputs: Mapping[str, str] | None = None) -> str:
        """End the run: `status` FINISHED, FAILED or KILLED; outputs: path → DVC hash of all that the stage wrote.

        Returns the id of the run of the whole execution; empty where MLflow did not answer to the end.
        """
        self._machine.stop()
        written = dict(outputs or {})
        for path in written:
            if Path(path).parts[0] == "models":
                self._mail.call(lambda path=path: self._log_model(path))  # type: ignore[misc]
        return self._parent if self._mail.close(lambda: self._close(status, written)) else ""

    # What follows runs on the mailbox's thread.

    def _open(self) -> None:
        self._store = store = Store(self.root)
        execution = executions.current()
        about = executions.git_tags(self.root)
        self._parent = store.parent(execution, self._settings, about)
        store.bury(self.stage, self._parent)
        tags = {
            **about,
            **read_tags(self._inputs),
            "bigr.process": executions.process_tag(),
            "mlflow.source.name": f"bigr run {self.stage}",
            "mlflow.note.content": self._about,
        }
        own = {
            key: value
            for key, value in self._settings.items()
            if key in ("seed", "run.precision") or key.startswith(f"{self.stage}.")
        }
        self._run = self._run or store.child(self._parent, self.stage, tags)  # this call may be repeated
        store.params(self._run, own)

    def _log_inputs(self) -> None:
        self._store.code(self._run, self._inputs)
        self._store.inputs(self._run, self._inputs, self._purpose)
        data = {path: md5 for path, md5 in self._inputs.items() if Path(path).parts[:1] not in _MADE_ON_THE_WAY}
        self._store.inputs(self._parent, data, self._purpose)

    def _log_points(self, points: list[_Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(p.key, p.value, p.timestamp, p.step) for p in points]
        self._store.client.log_batch(self._run, metrics=metrics)
        # Step 0: MLflow charts a metric with a later step as a curve, one of step 0 beside those of other executions.
        shown = [Metric(p.key, p.value, p.timestamp, 0) for p in points if p.final]
        if shown and "metrics" in self._shares:
            self._store.client.log_batch(self._parent, metrics=shown)

    def _log_picture(self, name: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            self._store.client.log_artifact(self._run, str(path), "pictures")
            if "pictures" in self._shares:  # in no folder: MLflow's page of compared runs shows no folders
                self._store.client.log_artifact(self._parent, str(path))

    def _log_frame(self, name: str, content: bytes, step: int) -> None:
        from PIL import Image

        with Image.open(io.BytesIO(content)) as image:
            self._store.client.log_image(self._run, image, key=name, step=step, synchronous=True)

    def _log_model(self, path: str) -> None:
        with uploading(self.root / path):
            self._store.client.log_artifacts(self._run, str(self.root / path), path)

    def _close(self, status: str, written: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(f"dvc.out.{path}", md5) for path, md5 in written.items()]
        self._store.client.log_batch(self._run, tags=tags)
        if status == "FINISHED" and "metrics" in self._shares and (words := in_words(self._results)):
            self._store.client.set_tag(self._parent, "mlflow.note.content", f"The pipeline, to its end: {words}.")
        self._store.end(self._run, status)
        self._store.end(self._parent, status)
