"""`bigr promote`: registers the finished pipeline's model, compares it with the champion, and moves the alias.

A champion whose metrics are of another evaluation protocol is measured again under the present one, once. A challenger
with fewer samples than the champion was measured with is refused before that.
"""

import logging
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bigr import config
from bigr.pipeline import dvcfile, registration
from bigr.pipeline.remeasure import Remeasurement
from bigr.runtime.errors import BigrError
from bigr.tracking.registry.gate import GateRow, compare, decide
from bigr.tracking.registry.versions import Candidate, Registry, Version
from bigr.tracking.store import Store, asking

log = logging.getLogger(__name__)

MEASURED = ("samples", registration.EVALUATION)
"""Stages that must be up to date, so that the metrics are those of the present models."""


@dataclass(frozen=True)
class Decision:
    """The result of a comparison.

    version: the challenger's number; champion: the number of the champion before; why: the reason, in words;
    measured_again: a sentence on the remeasurement of the champion, empty where there was none.
    """

    version: int
    champion: int | None
    promoted: bool
    why: str
    rows: list[GateRow]
    measured_again: str = ""

    @property
    def is_champion(self) -> bool:
        """Whether the version is the champion after the comparison."""
        return self.promoted or self.version == self.champion

    @property
    def summary(self) -> str:
        """One line."""
        if self.promoted:
            return f"version {self.version} is the champion now: {self.why}"
        if self.is_champion:
            return f"version {self.version} is the champion already"
        stays = f"version {self.champion} stays the champion" if self.champion else "there is no champion"
        return f"version {self.version} is not promoted, {stays}: {self.why}"

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {**asdict(self), "is_champion": self.is_champion, "summary": self.summary}


def candidate(root: Path, params: Path) -> Candidate:
    """The model and metrics at `root`. Raises `BigrError` where the pipeline has not finished, or is out of date."""
    values = config.read(params)
    settings = config.validate(values, params.name)
    described = dvcfile.stages(root, values)
    specs = [described[name] for name in MEASURED]
    for path in dict.fromkeys(path for spec in specs for path in (*spec.deps, *spec.outs)):
        if not (root / path).exists():
            raise BigrError(f"{path} does not exist, so there is nothing to promote; run `dvc repro` first")
    if stale := dvcfile.outdated(root, [spec.name for spec in specs]):
        raise BigrError(
            f"stage {stale[0]} is out of date: the metrics are not those of the present models and settings; run "
            "`dvc repro` first"
        )
    evaluation = described[registration.EVALUATION]
    return registration.candidate(root, settings, dvcfile.content_hashes(root, (*evaluation.deps, *evaluation.outs)))


def promote(root: Path, params: Path) -> Decision:
    """Register the model at `root`, compare it with the champion, move the alias if it passes. Raises `BigrError`."""
    root = root.absolute()
    offered = candidate(root, params)
    with asking(root):
        return settle(offered, Registry(Store(root)))


def settle(offered: Candidate, registry: Registry) -> Decision:
    """`promote` for a known candidate and an open store."""
    comparisons = offered.settings.promotion.metrics
    execution = registration.execution_of(offered, registry.store)
    version = registry.register(offered, execution)
    champion = registry.champion()
    if champion is not None and champion.number == version.number:
        return Decision(version.number, champion.number, False, "", [])
    own = registry.metrics(version, offered.protocol)
    rows = compare(comparisons, own or {}, None)  # first: a metric that was not measured is an error
    theirs, again = None, ""
    if champion is not None and (too_few := _too_few(offered, registry.samples(champion))):
        passes, why, rows = False, too_few, []
    else:
        if champion is not None:
            theirs = registry.metrics(champion, offered.protocol)
            if theirs is None:
                theirs, again = _measure_again(champion, offered, registry, execution), _protocol(champion, offered)
            rows = compare(comparisons, own or {}, theirs)
        passes, why = decide(rows)
    if passes:
        registry.promote(version)
    decision = Decision(version.number, champion.number if champion else None, passes, why, rows, again)
    registry.note(version, decision.summary)
    return decision


def _too_few(offered: Candidate, samples: int) -> str:
    """Why the candidate cannot win against a champion measured with so many samples; empty where it can."""
    own = offered.settings.samples.count
    if own >= samples:
        return ""
    return f"it has {own:,} samples, the champion was measured with {samples:,}; set samples.count to {samples} or more"


def _protocol(champion: Version, offered: Candidate) -> str:
    """The remeasurement of the champion, in a sentence."""
    evaluation = offered.settings.evaluation
    return (
        f"version {champion.number}, the champion, was measured again under this evaluation's protocol: its own models "
        f"drew {offered.settings.samples.count:,} new samples, compared with the {evaluation.reference} split as it is "
        f"now by the extractor {evaluation.extractor}"
    )


def _measure_again(champion: Version, offered: Candidate, registry: Registry, execution: str) -> dict[str, float]:
    log.info("the champion, version %d, is measured again with this reference and extractor", champion.number)
    same = champion.hashes.get("models/tokenizer") == offered.hashes["models/tokenizer"]
    with tempfile.TemporaryDirectory() as folder, Remeasurement(offered.root) as again:
        package = registry.fetch(champion, Path(folder))
        try:
            again.measure(package, offered.settings, same)
        except BigrError as error:
            raise BigrError(
                f"the champion, version {champion.number}, cannot be measured on the present images, so that nothing "
                f"compares ({error}); choose by hand: set the alias `champion` on MLflow's page of the model"
            ) from error
        measured = replace(offered, root=again.root)
        if measured.protocol != offered.protocol:
            raise BigrError(
                "the champion was measured with another extractor than the challenger, though the settings are the "
                "same: the classifier's training did not repeat; run `dvc repro -f -s evaluation` on this machine first"
            )
        metrics = measured.metrics
    about = {
        "bigr.version": str(champion.number),
        "mlflow.parentRunId": execution,
        "mlflow.note.content": f"Version {champion.number}, the champion, measured on the images of this execution.",
    }
    run = registration.create_run(registry.store, f"version {champion.number} again", offered, about)
    registry.record(champion, offered.protocol, metrics, run, offered.settings)
    return registry.metrics(champion, offered.protocol) or {}
