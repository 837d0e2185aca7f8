"""Hooks of the flows: label a run with its machine and process, and add the remedy to the message of a killed run."""

from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flows import Flow
from prefect.states import Crashed, State

from bigr.tracking.executions import process_tag
from flows.execution import RETRY

LABEL = "bigr.process"
"""The flow run's label: host, number and start of its process, as `bigr.tracking.executions` reads them."""


def say_where(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A flow's hook `on_running`: label the run with this process."""
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(flow_run.id, {LABEL: process_tag()})


def say_retry(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A flow's hook `on_crashed`, which the worker calls: add the remedy to the run's message."""
    with get_client(sync_client=True) as client:
        message = f"{(state.message or 'its process ended').rstrip('.')}; {RETRY}"
        client.set_flow_run_state(flow_run.id, Crashed(message=message), force=True)
