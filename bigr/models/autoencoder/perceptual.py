"""LPIPS: how different two images look, by VGG-16's features (Zhang et al., 2018; docs/method.md, section 1).

The five stages of VGG-16 end in relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3. At each, the features are scaled to
unit length over channels, and their squared differences are weighted by a learned, non-negative weight per channel,
averaged over positions and summed. Built from named tensors, widths included; `interop/lpips.py` reads the file.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigr.runtime.errors import BigrError

STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""torchvision's numbers of VGG-16's convolutions, by stage; a 2×2 max pooling stands between two stages."""

MIN_SIDE = 16
"""The least image side, in pixels: four poolings by 2 leave one position."""

# The published scaling layer: ImageNet's mean and standard deviation, for images in [−1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """The distance; frozen, with gradients for the images alone.

    `tensors` holds VGG-16's convolutions as torchvision names them, `features.N.weight` [out,in,3,3] and
    `features.N.bias` [out] for the N of `STAGES`, and LPIPS' published `lin0.model.1.weight` … `lin4.model.1.weight`
    [1,C,1,1], one per stage; others, such as VGG's classifier, are ignored. Raises `BigrError` naming the tensor that
    is missing or does not fit.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        width = 3
        for index, numbers in enumerate(STAGES):
            convolutions = []
            for number in numbers:
                weight = _take(tensors, f"features.{number}.weight", (None, width, 3, 3))
                width = weight.shape[0]
                bias = _take(tensors, f"features.{number}.bias", (width,))
                convolution = nn.Conv2d(weight.shape[1], width, 3, padding=1)
                convolution.load_state_dict({"weight": weight, "bias": bias})
                convolutions.append(convolution)
            self.stages.append(nn.ModuleList(convolutions))
            name = f"lin{index}.model.1.weight"
            channel_weights = _take(tensors, name, (1, width, 1, 1))
            if channel_weights.min() < 0:
                raise BigrError(
                    f"tensor {name}: holds negative weights; LPIPS' are not: use the published v0.1 weights"
                )
            self.register_buffer(f"lin{index}", channel_weights.clone())
        self.register_buffer("shift", torch.tensor(_SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Two batches [B,3,H,W] in [0, 1], sides of `MIN_SIDE` pixels or more -> distances [B], 0 or more, float32."""
        # Apart, not as one batch: nothing is kept for the targets, which need no gradient.
        pairs = zip(self.features(images), self.features(targets), strict=True)
        terms = [
            (self.get_buffer(f"lin{index}") * (a - b) ** 2).sum(dim=1).mean(dim=(1, 2))
            for index, (a, b) in enumerate(pairs)
        ]
        return torch.stack(terms).sum(dim=0)

    def features(self, images: Tensor) -> list[Tensor]:
        """Images [B,3,H,W] in [0, 1] -> the five stages' features [B,C,h,w], of unit length over C, float32."""
        x = (2 * images - 1 - self.shift) / self.scale
        features = []
        for index, convolutions in enumerate(self.stages):
            if index:
                x = F.max_pool2d(x, 2)
            for convolution in convolutions:  # type: ignore[attr-defined]
                x = F.relu(convolution(x))
            y = x.float()
            features.append(y / (torch.linalg.vector_norm(y, dim=1, keepdim=True) + 1e-10))
        return features


def _take(tensors: Mapping[str, Tensor], name: str, shape: tuple[int | None, ...]) -> Tensor:
    """The float32 tensor of that name; None in `shape` stands for any length."""
    if name not in tensors:
        raise BigrError(
            f"tensor {name} is missing; expected VGG-16's features.N.* and LPIPS' lin0 … lin4.model.1.weight"
        )
    found = tensors[name]
    if found.dim() != len(shape) or any(
        want not in (None, have) for want, have in zip(shape, found.shape, strict=True)
    ):
        expected = "×".join("any" if want is None else str(want) for want in shape)
        raise BigrError(f"tensor {name}: has shape {'×'.join(map(str, found.shape))}; expected {expected}")
    return found.float()
