"""The threads that tests compute with, and at the end what they measured (`record_property("measured", text)`)."""

import os
from typing import Any

from bigr.cli.program import let_threads_wait

# Before torch is loaded, here and in the processes that tests start: threads wait as in all commands, and tests that
# run side by side share the cores.
let_threads_wait()
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


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
