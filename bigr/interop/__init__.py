"""Weights on disk: this project's model folders and the published checkpoints.

What `bigr import` and `bigr export` do is here as functions, taken from `bigr.interop.exchange` when they are first
asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigr.interop.exchange import (
        export_generator,
        export_pair,
        export_tokenizer,
        import_generator,
        import_pair,
        import_tokenizer,
    )

__all__ = [
    "export_generator",
    "export_pair",
    "export_tokenizer",
    "import_generator",
    "import_pair",
    "import_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("bigr.interop.exchange"), name)
