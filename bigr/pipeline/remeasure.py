"""The champion, measured again: with the reference, the extractor and the settings of the present pipeline.

New images change the reference, and with it every figure. So that a challenger is compared with the champion on the
same images, the champion's own models draw samples under the settings that they were measured under, and the stages
`codes`, `samples` and `evaluation` do with them in a folder aside what they do in the project.
"""

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bigr.runtime.context import Context
from bigr.tracking.registry.package import MODELS
from bigr.tracking.registry.served_record import ServedRecord

if TYPE_CHECKING:
    from bigr.config import Settings


class Remeasurement:
    """A folder aside in which a version is measured. Use as a context manager; it goes afterwards."""

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
        """Write outputs/metrics.json and outputs/instrument.json of the version in `package` below `self.root`.

        same_tokenizer: its tokenizer is the project's, so that the project's codes are its own.
        Raises `BigrError` where the version cannot be measured on the present images.
        """
        from bigr.stages import draw_samples, encode_codes, evaluate_model

        for name in MODELS:
            self._link(package / "artifacts" / name, f"models/{name}")
        self._link(self._project / "data" / "shards", "data/shards")
        context, settings = Context(self.root), self._settings(package, settings)
        if same_tokenizer:
            self._link(self._project / "data" / "codes", "data/codes")
        else:
            encode_codes.run(settings, context)
        draw_samples.run(settings, context)
        evaluate_model.run(settings, context)

    def _link(self, target: Path, name: str) -> None:
        place = self.root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target.absolute(), target_is_directory=True)

    def _settings(self, package: Path, settings: "Settings") -> "Settings":
        """The present settings, but for what belongs to the version: sampler, editing, whether it knows labels."""
        own = ServedRecord.of_package(package).images
        editing = {} if own.editing is None else asdict(own.editing)
        weights = settings.evaluation.extractor_weights
        changed = {
            "codes": settings.codes.model_copy(update={"draws": 0}),  # they are for training alone
            "samples": settings.samples.model_copy(update=asdict(own.sampling)),
            "editing": settings.editing.model_copy(update=editing),
            "generator": settings.generator.model_copy(update={"use_labels": own.knows_labels}),
            "evaluation": settings.evaluation.model_copy(
                update={"extractor_weights": weights and str(self._project / weights)}
            ),
        }
        return settings.model_copy(update=changed)
