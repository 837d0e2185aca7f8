"""Makes `import torchvision` work beside a CPU-only torch; import this module before torch_fidelity or transformers.

torchvision's wheel is built for CUDA. Beside a CPU-only torch its compiled operators do not load, and its Python code
then fails to register implementations of operators that are not declared. Nothing here calls these operators, so that
declaring them is enough. This is done only after the import has failed: where torchvision works, a second declaration
is an error.
"""

import torch

_UNDECLARED = "torchvision::nms"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

try:
    import torchvision
except ModuleNotFoundError:  # transformers does without
    pass
except RuntimeError as error:
    if _UNDECLARED not in str(error):
        raise
    _library = torch.library.Library("torchvision", "DEF")  # the declarations live as long as this object
    for _schema in _SCHEMAS:
        _library.define(_schema)
    import torchvision  # noqa: F401
