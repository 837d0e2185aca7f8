"""BiGR: image generation and visual representation from binary latent codes.

`bigr.load(…)` gives a trained model as one object, `bigr.ImageModel`; see docs/applications.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigr.imaging.model import ImageModel as ImageModel
    from bigr.pipeline.loading import load as load
    from bigr.runtime.errors import BigrError as BigrError

_HANDED_ON = {"load": "bigr.pipeline.loading", "ImageModel": "bigr.imaging.model", "BigrError": "bigr.runtime.errors"}


def __getattr__(name: str) -> Any:
    """Names are imported when they are asked for: the command line starts without torch, a stage without this."""
    if name not in _HANDED_ON:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HANDED_ON[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HANDED_ON])
