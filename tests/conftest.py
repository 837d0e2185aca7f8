"""At the end of a run: what the tests measured (`record_property("measured", text)`), a line each."""

from typing import Any


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
