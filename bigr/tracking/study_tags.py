"""Tags of the executions of a study, by which one filter of MLflow's run table selects them."""

from collections.abc import Mapping
from pathlib import Path

from bigr.tracking.store import Store


def prepare(project: Path) -> None:
    """Create the store, before several executions at once do."""
    Store(project)


def mark(project: Path, execution: str, tags: Mapping[str, str], metrics: Mapping[str, float]) -> bool:
    """Add tags and metrics to the parent run of an execution; False where there is no such run."""
    store = Store(project)
    found = store.runs(bigr__execution=execution, bigr__kind="pipeline")
    if not found:
        return False
    run = found[0].info.run_id
    for name, value in tags.items():
        store.client.set_tag(run, name, value)
    for name, metric in metrics.items():
        store.client.log_metric(run, name, metric)
    return True
