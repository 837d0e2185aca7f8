"""Many executions as one study: tags by which a single filter of MLflow's run table selects them."""

from collections.abc import Mapping
from pathlib import Path

from bigr.tracking.store import Store


def prepare(project: Path) -> None:
    """Make the store before several executions at once would."""
    Store(project)


def mark(project: Path, execution: str, tags: Mapping[str, str], figures: Mapping[str, float]) -> bool:
    """Give the parent run of an execution tags and figures; False where there is no such run."""
    store = Store(project)
    found = store.runs(bigr__execution=execution, bigr__kind="pipeline")
    if not found:
        return False
    run = found[0].info.run_id
    for name, value in tags.items():
        store.client.set_tag(run, name, value)
    for name, figure in figures.items():
        store.client.log_metric(run, name, figure)
    return True
