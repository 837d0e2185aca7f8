"""Whether anybody still waits for the answer to a request: drawing looks at it between two iterations."""

from contextvars import ContextVar
from threading import Event

abandoned: ContextVar[Event | None] = ContextVar("abandoned", default=None)
"""Set by the server for each request; the event is set when the client has gone, or the server ends."""


def is_abandoned() -> bool:
    """Whether the request that this thread works on has nobody left to answer."""
    event = abandoned.get()
    return event is not None and event.is_set()
