"""Weights on disk: model folders, the Hugging Face Hub, and the published checkpoints."""

from importlib import import_module
from typing import Any

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
    return getattr(import_module("bigr.interop.published.exchange"), name)
