"""The machine's load while a stage runs (processors, memory, disk, network, GPUs), as MLflow's system metrics."""

import logging
import threading
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

_PATIENCE_S = 5
"""Seconds that `stop` waits for a measurement: a driver may hang."""


class MachineMonitor:
    """Measures on a separate thread until `stop`, and passes each measurement and its number to `report`.

    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL is the time between two measurements, 10 seconds by default;
    MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false switches them off.
    """

    def __init__(self, report: Callable[[Mapping[str, float], int], None]) -> None:
        self._report, self._stopped = report, threading.Event()
        self._thread = threading.Thread(target=self._work, name="machine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the measuring. Waits five seconds at most for a measurement that has begun."""
        self._stopped.set()
        self._thread.join(_PATIENCE_S)

    def _work(self) -> None:
        from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
            return
        machine, number = SystemMetricsMonitor(run_id=None), 0  # measures alone; the tracker's mailbox delivers
        try:
            while not self._stopped.wait(machine.sampling_interval):
                machine.collect_metrics()
                self._report({f"system/{name}": value for name, value in machine.aggregate_metrics().items()}, number)
                for monitor in machine.monitors:
                    monitor.clear_metrics()
                number += 1
        except Exception as error:  # a stage does not fail for it
            log.warning("the load of the machine is not measured: %s", error)
