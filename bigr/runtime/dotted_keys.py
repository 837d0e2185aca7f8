"""Nested settings and metrics by dotted keys, as `samples.count`."""

from collections.abc import Iterable, Mapping
from typing import Any


def flatten(values: Mapping[str, Any], above: Iterable[str] = ()) -> dict[str, Any]:
    """A nested mapping as one of dotted keys; `above` is prefixed to each."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, (*above, key)) if isinstance(value, Mapping) else {".".join((*above, key)): value}
    return flat
