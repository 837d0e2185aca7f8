"""Where a flow run's process is, said by itself: Prefect 3.8 keeps a number, but not the machine that it belongs to."""

from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flows import Flow
from prefect.states import State

from bigr.tracking.executions import process_tag

LABEL = "bigr.process"
"""The flow run's label: host, number and start of its process, as `bigr.tracking.executions` reads them."""


def say_where(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A flow's hook `on_running`: label the run with this process."""
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(flow_run.id, {LABEL: process_tag()})
