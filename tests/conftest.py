"""The order of the files, the threads that tests compute with, the project that is trained once for all files, and at
the end what tests measured (`record_property("measured", text)`).
"""

import fcntl
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bigr.cli.program import let_threads_wait
from tests import preloaded, scratch

FIRST = (
    "test_retraining",
    "test_services",
    "test_platform",
    "test_schedule",
    "test_app_page",
    "test_dvc",
    "test_ablations",
    "test_pipeline",
    "test_from",
    "test_slurm",
    "test_lineage",
    "test_mlflow_ui",
    "test_resume",
    "test_masking",
    "test_app_server",
)
"""The files that take longest, the longest first: what starts them last waits for them alone. The first one trains the
project `trained`, for which others of them wait: between it and them are those that do without."""

# Before torch is loaded, here and in the processes that tests start: threads wait as in all commands, and tests that
# run side by side share the cores.
let_threads_wait()
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores, since tests of servers wait as well."""
    return (os.cpu_count() or 1) + 1


def pytest_configure(config: pytest.Config) -> None:
    """Keep the order of `pytest_collection_modifyitems` where tests run in several processes."""
    config.option.loadscopereorder = False
    preloaded.given = getattr(config, "workerinput", {}).get("preloaded", "")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Let the processes that tests run in share the one of tests/preloaded.py."""
    node.workerinput["preloaded"] = preloaded.begin()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of `FIRST` first, then those of the most tests."""
    sizes = Counter(item.path for item in items)

    def place(item: pytest.Item) -> tuple[int, int]:
        name = item.path.stem
        return FIRST.index(name) if name in FIRST else len(FIRST), -sizes[item.path]

    items.sort(key=place)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`scratch.make_tiny`'s project after `dvc repro`, run once for all processes of this test run.

    Not to be changed: a test that would, takes a `scratch.copy`.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "done").exists():
            shutil.rmtree(shared / "tiny", ignore_errors=True)
            project = scratch.make_tiny(shared / "tiny")
            as_users_do = {preloaded.NO_FORK: "run shards,run generator"}  # one that trains, one that does not
            scratch.run(project, "dvc", "repro", **as_users_do)
            (shared / "done").touch()
    return shared / "tiny" / "project"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print it, also where tests ran in other processes."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    measured = [
        (report.nodeid.rpartition("::")[2], value)
        for report in reports
        if report.when == "call"
        for name, value in report.user_properties
        if name == "measured"
    ]
    if measured:
        terminalreporter.section("measured")
        for test, value in measured:
            terminalreporter.write_line(f"{test}: {value}")
