"""The registry: versions of the model `bigr`, their metrics, and the aliases `champion` and `challenger`.

A version is tokenizer, model and all that they are served with (`ServedRecord`: sampler, editing, classes, seed, …);
the same is registered once. Its tags `dvc.<path>` hold the DVC hashes of the models, the data and the metrics,
`git.commit` the commit. Its metrics belong to an evaluation protocol (reference, extractor, number of samples,
settings, code), which is named by its hash; metrics of different protocols do not compare. `champion` is the version
that is served, `challenger` that of the last finished pipeline.
"""

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigr.evaluation.headline import in_words
from bigr.runtime.dotted_keys import flatten
from bigr.runtime.errors import BigrError
from bigr.runtime.masking import masked
from bigr.tracking import executions
from bigr.tracking.registry.package import CODE, MODELS, write
from bigr.tracking.registry.served_record import ServedRecord
from bigr.tracking.store import RUN_PAGE, Store, uploading

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from bigr.config import Settings

NAME = "bigr"
CHAMPION, CHALLENGER = "champion", "challenger"
METRICS = "outputs/metrics.json"
PROTOCOL = "outputs/protocol.json"
RECORDED = ("models/tokenizer", "models/bigr", "data/shards", "outputs/samples.npz", METRICS)
"""What a version's tags name by DVC hash."""

_ABOUT = """Images from class labels: tokenizer and generator of the BiGR pipeline, one version for each finished model.

`bigr serve` answers `POST /invocations` with `{"inputs": [3, 7]}` by PNG images in base64, on 127.0.0.1:5001.
`bigr promote` moves the alias `champion`; docs/registry.md tells all.
"""


@dataclass(frozen=True)
class Candidate:
    """The result of a finished pipeline.

    hashes: path → DVC hash of what the stage `evaluation` read and wrote; measuring: of the code that it measures with.
    """

    root: Path
    settings: "Settings"
    hashes: Mapping[str, str]
    measuring: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels. Raises `BigrError` where there are no shards."""
        from bigr.data.shards import ShardIndex

        return ShardIndex.load(self.root / "data" / "shards").classes

    @cached_property
    def identity(self) -> str:
        """A hash of all that decides how the version answers: both networks, the `ServedRecord`, the package's code."""
        models = {name: self.hashes[f"models/{name}"] for name in MODELS}
        code = hashlib.sha256(CODE.read_bytes()).hexdigest()
        record = ServedRecord.of(self.settings, self.classes).write()
        return _digest({**models, "served with": record, "code": code})

    @cached_property
    def protocol(self) -> str:
        """The hash of the evaluation protocol: metrics compare where it is the same."""
        file = self.root / PROTOCOL
        return _digest(
            {
                "evaluation": self.settings.evaluation.model_dump(),
                "samples": self.settings.samples.count,
                "shards": self.hashes.get("data/shards"),
                "code": dict(self.measuring),
                "extractor and reference": json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None,
            }
        )

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The finite metrics of outputs/metrics.json, as `<part>.<name>`."""
        flat = flatten(json.loads((self.root / METRICS).read_text(encoding="utf-8")))
        return {name: float(value) for name, value in flat.items() if math.isfinite(value)}

    @property
    def in_words(self) -> str:
        """The model's shape and headline metrics, in a sentence."""
        tokenizer, generator = self.settings.tokenizer, self.settings.generator
        return (
            f"{len(self.classes)} classes of {self.settings.shards.source}, {self.settings.shards.image_size} pixels: "
            f"{self.settings.grid}×{self.settings.grid} tokens of {tokenizer.code_bits} bits, a generator of "
            f"{generator.layers} layers of width {generator.dim}, seed {self.settings.seed}. "
            f"Measured when registered: {in_words(self.metrics)}."
        )


@dataclass(frozen=True)
class Version:
    """One version: its number, the id of its logged model (weights, metrics), and path → DVC hash of its tags."""

    number: int
    model_id: str
    hashes: Mapping[str, str]


class Registry:
    """The registered model in a store. Methods raise MLflow's own exceptions."""

    def __init__(self, store: Store) -> None:
        self.store, self.client = store, store.client

    def register(self, candidate: Candidate, run_id: str) -> Version:
        """The candidate's version, created where there is none: with its metrics, and the alias `challenger`.

        run_id: of the execution of the pipeline.
        """
        from mlflow.exceptions import MlflowException

        version = self.find(candidate)
        if version is None:
            try:
                self.client.create_registered_model(NAME, description=_ABOUT)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
                    raise
            version = self._create(candidate, run_id)
        if self.metrics(version, candidate.protocol) is None:
            self.record(version, candidate.protocol, candidate.metrics, run_id, candidate.settings)
        self.client.set_registered_model_alias(NAME, CHALLENGER, str(version.number))
        return version

    def find(self, candidate: Candidate) -> Version | None:
        """The version of the same identity, or None."""
        found = self.client.search_model_versions(
            f"name = '{NAME}' and tag.`bigr.identity` = '{candidate.identity}'", order_by=["version_number DESC"]
        )
        return _version(found[0]) if found else None

    def champion(self) -> Version | None:
        """The version that the alias `champion` points to, or None."""
        from mlflow.exceptions import MlflowException

        try:
            return _version(self.client.get_model_version_by_alias(NAME, CHAMPION))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model; no such alias
                return None
            raise

    def named(self, uri: str) -> Version:
        """The version that a URI names: `models:/bigr@champion`, or its number as `models:/bigr/3`.

        Raises `BigrError` where there is none.
        """
        from mlflow.exceptions import MlflowException

        alias, number = (uri.removeprefix(f"models:/{NAME}{mark}") for mark in "@/")
        known = "write models:/bigr@champion, or models:/bigr/1"
        try:
            if alias != uri:
                return _version(self.client.get_model_version_by_alias(NAME, alias))
            if number != uri and number.isdecimal():
                return _version(self.client.get_model_version(NAME, number))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            where = f"MLflow's registry ({masked(self.store.uri)}) has no such version"
            raise BigrError(f"{uri}: {where}; {known}; `bigr promote` makes a champion") from None
        raise BigrError(f"{uri}: not a version of the model {NAME}; {known}")

    def promote(self, version: Version) -> None:
        """Point the alias `champion` to `version`."""
        self.client.set_registered_model_alias(NAME, CHAMPION, str(version.number))

    def note(self, version: Version, verdict: str) -> None:
        """Store the gate's decision with the version."""
        self.client.set_model_version_tag(NAME, str(version.number), "bigr.gate", verdict)

    def metrics(self, version: Version, protocol: str) -> dict[str, float] | None:
        """The metrics of `version` under the evaluation protocol `protocol`, or None where it was not measured so."""
        metrics = self.client.get_logged_model(version.model_id).metrics or []
        own = [metric for metric in metrics if metric.dataset_digest == protocol]
        return {metric.key: metric.value for metric in sorted(own, key=lambda metric: metric.timestamp)} or None

    def samples(self, version: Version) -> int:
        """The largest number of samples that `version` was measured with as a challenger; 0 where it is not known.

        A remeasurement beside another challenger does not count: one with many samples would exclude all usual
        challengers.
        """
        metrics = self.client.get_logged_model(version.model_id).metrics or []
        counts = {metric.run_id: metric.value for metric in metrics if metric.key == "samples.images" and metric.run_id}
        own = [count for run, count in counts.items() if "bigr.version" not in self.client.get_run(run).data.tags]
        return int(max(own, default=0))

    def record(
        self, version: Version, protocol: str, metrics: Mapping[str, float], run_id: str, settings: "Settings"
    ) -> None:
        """Record metrics of `version`, measured under `protocol` and `settings`, in the run `run_id`."""
        from mlflow.entities import Metric

        evaluation, now = settings.evaluation, int(time.time() * 1000)
        about = {
            "dataset_name": f"{evaluation.reference} split, {evaluation.extractor}",
            "dataset_digest": protocol,
            "model_id": version.model_id,
            "run_id": run_id,
        }
        points = [Metric(name, value, now, 0, **about) for name, value in metrics.items()]
        self.client.log_batch(run_id, metrics=points)

    def fetch(self, version: Version, folder: Path) -> Path:
        """The folder of the version's package (`package.py`): the stored one, or a copy below `folder`."""
        from mlflow.artifacts import download_artifacts

        location = self.client.get_logged_model(version.model_id).artifact_location
        return Path(download_artifacts(artifact_uri=location, dst_path=str(folder), tracking_uri=self.store.uri))

    def _create(self, candidate: Candidate, run_id: str) -> Version:
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        git = executions.git_tags(candidate.root)
        tags = {f"dvc.{path}": candidate.hashes[path] for path in RECORDED if path in candidate.hashes}
        tags |= {"bigr.identity": candidate.identity}
        if git:
            tags |= {"git.commit": git["mlflow.source.git.commit"], "git.dirty": git["git.dirty"]}
        params = {key: str(value) for key, value in flatten(candidate.settings.model_dump()).items()}
        logged = self.client.create_logged_model(
            self.store.experiment, name=NAME, source_run_id=run_id, tags=tags, params=params
        )
        try:
            with tempfile.TemporaryDirectory() as folder:
                place, package = logged.artifact_location, Path(folder) / "model"
                about = Model(artifact_path=place, run_id=run_id, model_uuid=logged.model_id, model_id=logged.model_id)
                write(package, candidate.root, candidate.settings, candidate.classes, about)
                with uploading(package):
                    self.client.log_model_artifacts(logged.model_id, str(package))
        except BaseException:
            self.client.finalize_logged_model(logged.model_id, "FAILED")
            raise
        self.client.finalize_logged_model(logged.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        page = f"#/experiments/{self.store.experiment}/models/{logged.model_id}?{RUN_PAGE}"
        created = self.client.create_model_version(
            NAME,
            source=logged.artifact_location,
            run_id=run_id,
            tags={**tags, "bigr.model_id": logged.model_id},
            description=f"{candidate.in_words} [Weights, settings and all metrics]({page}).",
            model_id=logged.model_id,
        )
        versions = json.dumps([{"name": NAME, "version": int(created.version)}])
        self.client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": versions})  # as register_model does
        return _version(created)


def _version(found: "ModelVersion") -> Version:
    tags = {str(key): str(value) for key, value in found.tags.items()}
    if "bigr.model_id" not in tags:
        raise BigrError(f"version {found.version} of {NAME} in MLflow's registry was not registered by this project")
    hashes = {key.removeprefix("dvc."): value for key, value in tags.items() if key.startswith("dvc.")}
    return Version(int(found.version), tags["bigr.model_id"], hashes)


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]  # MLflow keeps 36
