"""Whether a client still waits for the response to a request. Sampling asks between two iterations."""

from contextvars import ContextVar
from threading import Event

abandoned: ContextVar[Event | None] = ContextVar("abandoned", default=None)
"""Set by the server for each request; the event is set when the client disconnects or the server stops."""


def is_abandoned() -> bool:
    """Whether no client waits for the response that this thread computes."""
    event = abandoned.get()
    return event is not None and event.is_set()
