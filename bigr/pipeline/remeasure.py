"""Measures the champion again, under the evaluation protocol of the present pipeline.

New images change the reference, and with it every metric. To compare challenger and champion on the same images, the
stages `codes`, `samples` and `evaluation` run in a temporary folder on the champion's own models, with the sampler's
settings that it was measured under.
"""

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bigr.pipeline.runner import function_of
from bigr.runtime.context import Context
from bigr.tracking.registry.package import MODELS
from bigr.tracking.registry.served_record import ServedRecord

if TYPE_CHECKING:
    from bigr.config import Settings


class Remeasurement:
    """A temporary folder in which a version is measured. Use as a context manager, which removes it."""

    def __init__(self, root: Path) -> None:
        self._project = root.absolute()
        aside = self._project / ".dvc" / "tmp" / "promote"
        aside.mkdir(parents=True, exist_ok=True)
        self.root = Path(tempfile.mkdtemp(dir=aside))

    def __enter__(self) -> "Remeasurement":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def measure(self, package: Path, settings: "Settings", same_tokenizer: bool) -> None:
        """Write outputs/metrics.json and outputs/protocol.json of the version in `package` below `self.root`.

        same_tokenizer: the version has the project's tokenizer, and so its codes.
        Raises `BigrError` where the version cannot be measured on the present images.
        """
        for name in (*MODELS, "text"):
            if (package / "artifacts" / name).is_dir():
                self._link(package / "artifacts" / name, f"models/{name}")
        self._link(self._project / "data" / "shards", "data/shards")
        context, settings = Context(self.root), self._settings(package, settings)
        if same_tokenizer:
            self._link(self._project / "data" / "codes", "data/codes")
        for stage in ("samples", "evaluation") if same_tokenizer else ("codes", "samples", "evaluation"):
            function_of(stage)(settings, context)

    def _link(self, target: Path, name: str) -> None:
        place = self.root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target.absolute(), target_is_directory=True)

    def _settings(self, package: Path, settings: "Settings") -> "Settings":
        """The present settings, with the version's own sampler, editing and use of labels."""
        own = ServedRecord.of_package(package).images
        editing = {} if own.editing is None else asdict(own.editing)
        evaluation = settings.evaluation
        files = {name: getattr(evaluation, name) for name in ("extractor_weights", "clip")}
        prompts = settings.samples.prompts
        changed = {
            "codes": settings.codes.model_copy(update={"draws": 0, "store": None}),  # draws: only training reads them
            "samples": settings.samples.model_copy(
                update={
                    **asdict(own.sampling),
                    "preset": None,
                    "prompts": prompts and str(self._project / prompts),
                }
            ),
            "editing": settings.editing.model_copy(update=editing),
            "generator": settings.generator.model_copy(update={"use_labels": own.knows_labels}),
            "evaluation": evaluation.model_copy(
                update={name: path and str(self._project / path) for name, path in files.items()}
            ),
        }
        return settings.model_copy(update=changed)
