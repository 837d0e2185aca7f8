"""What the machine does while a stage runs: processors, memory, disk, network and GPUs, as MLflow's system metrics."""

import logging
import threading
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

_PATIENCE_S = 5
"""Seconds that a measurement under way may still take, of a driver that hangs, say."""


class MachineMonitor:
    """Measures on a thread of its own from its making to `stop`, and hands each measurement and its number to `report`.

    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL is the time between two, 10 seconds by default;
    MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false measures nothing.
    """

    def __init__(self, report: Callable[[Mapping[str, float], int], None]) -> None:
        self._report, self._stopped = report, threading.Event()
        self._thread = threading.Thread(target=self._work, name="machine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the measuring. A measurement under way is waited for, but not long: the stage has ended."""
        self._stopped.set()
        self._thread.join(_PATIENCE_S)

    def _work(self) -> None:
        from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
            return
        machine, number = SystemMetricsMonitor(run_id=None), 0  # it measures; the tracker's mailbox delivers
        try:
            while not self._stopped.wait(machine.sampling_interval):
                machine.collect_metrics()
                self._report({f"system/{name}": value for name, value in machine.aggregate_metrics().items()}, number)
                for monitor in machine.monitors:
                    monitor.clear_metrics()
                number += 1
        except Exception as error:  # a stage does not fail for it
            log.warning("what the machine does could not be measured: %s", error)
