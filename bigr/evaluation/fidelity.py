"""Fidelity: how far a set of images is from another, by torch-fidelity over a chosen feature extractor.

Everything goes through `torch_fidelity.calculate_metrics`: Fréchet and kernel distance, precision and recall, and with
Inception its score. Features reach the metrics in float64. Nothing is downloaded, and nothing is cached on disk.
"""

import hashlib
import pickle
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from bigr.errors import BigrError
from bigr.evaluation import _torchvision  # noqa: F401 - torch_fidelity imports torchvision: this line goes first
from bigr.evaluation.classifier import Classifier

# isort: split
import torch_fidelity
from torch_fidelity import feature_extractor_inceptionv3

CLASSIFIER, INCEPTION = "classifier", "inception-v3-compat"

_KEYS = {
    CLASSIFIER: {
        torch_fidelity.KEY_METRIC_FID: "fd_classifier",
        torch_fidelity.KEY_METRIC_KID_MEAN: "kd_classifier",
        torch_fidelity.KEY_METRIC_PRECISION: "precision",
        torch_fidelity.KEY_METRIC_RECALL: "recall",
    },
    INCEPTION: {
        torch_fidelity.KEY_METRIC_FID: "fid",
        torch_fidelity.KEY_METRIC_KID_MEAN: "kid",
        torch_fidelity.KEY_METRIC_ISC_MEAN: "isc",
        torch_fidelity.KEY_METRIC_PRECISION: "precision",
        torch_fidelity.KEY_METRIC_RECALL: "recall",
    },
}
_PRECISION_RECALL_ROWS = 1000  # rows of a block of the distance matrix: bounds memory, changes no figure
_RNG_BITS = 32  # what numpy's RandomState takes


class ClassifierExtractor(torch_fidelity.FeatureExtractorBase):
    """The offline classifier as torch-fidelity wants it. classifier: has `features` (float images → [B, F])."""

    def __init__(self, name: str, features_list: list[str], classifier: Classifier, **_: Any) -> None:
        super().__init__(name, features_list)
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images uint8 [B, 3, H, W] → ([B, F] float64 on the CPU,)."""
        device = next(self.classifier.parameters()).device
        return (self.classifier.features(images.to(device).float() / 255).cpu().double(),)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """The one layer that there is."""
        return ("penultimate",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The same layer for every metric."""
        return "penultimate"

    @staticmethod
    def can_be_compiled() -> bool:
        """Not worth it at this size."""
        return False


class InceptionExtractor(feature_extractor_inceptionv3.FeatureExtractorInceptionV3):
    """torch-fidelity's Inception with weights that are handed in.

    Upstream's constructor downloads its weights or unpickles a file. Its download is replaced by the given tensors.
    """

    def __init__(self, name: str, features_list: list[str], weights: Mapping[str, Tensor], **_: Any) -> None:
        with patch.object(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: weights):
            super().__init__(name, features_list)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images uint8 [B, 3, H, W] of any size → the layers asked for, each [B, F] float64 on the CPU."""
        return tuple(layer.cpu().double() for layer in super().forward(images))


# Named for this project: torch-fidelity's own "inception-v3-compat" is the one that downloads.
_NAMES = {CLASSIFIER: "bigr-classifier", INCEPTION: "bigr-inception-v3-compat"}
torch_fidelity.register_feature_extractor(_NAMES[CLASSIFIER], ClassifierExtractor)
torch_fidelity.register_feature_extractor(_NAMES[INCEPTION], InceptionExtractor)


class Fidelity:
    """Compares sets of images under one extractor.

    extractor: "classifier" (reported as `fd_classifier`, `kd_classifier`, `precision`, `recall`) or
        "inception-v3-compat" (`fid`, `kid`, `isc`, `precision`, `recall`).
    model: the classifier, or Inception's weights by name.
    seed: of the kernel distance's subsets and the Inception score's shuffle. The same seed and images give the same
        figures.
    """

    def __init__(
        self,
        extractor: str,
        model: Classifier | Mapping[str, Tensor],
        *,
        device: torch.device,
        batch_size: int,
        kid_subsets: int,
        kid_subset_size: int,
        neighbours: int,
        seed: int,
    ) -> None:
        self.extractor, self.device = extractor, device
        self._kid_subset_size, self._neighbours = kid_subset_size, neighbours
        self._options: dict[str, Any] = {
            "feature_extractor": _NAMES[extractor],
            ("classifier" if extractor == CLASSIFIER else "weights"): model,
            "fid": True,
            "kid": True,
            "prc": True,
            "isc": extractor == INCEPTION,
            "kid_subsets": kid_subsets,
            "prc_neighborhood": neighbours,
            "prc_batch_size": _PRECISION_RECALL_ROWS,
            "batch_size": batch_size,
            "rng_seed": seed % 2**_RNG_BITS,
            "cuda": device.type == "cuda",  # torch-fidelity knows no other accelerator
            "save_cpu_ram": True,  # no loader processes; distances by blocks
            "cache": False,
            "verbose": False,
        }

    @property
    def distance(self) -> str:
        """The key of the Fréchet distance among the figures."""
        return _KEYS[self.extractor][torch_fidelity.KEY_METRIC_FID]

    def compare(self, images: Dataset[Tensor], reference: Dataset[Tensor]) -> dict[str, float]:
        """Figures of `images` against `reference`; datasets of uint8 [3, H, W], read in order.

        Precision: share of `images` inside the reference's manifold; recall: the other way round. The kernel
        distance draws subsets of `kid_subset_size`, or of the smaller set's size where that is less.
        Raises `BigrError` where a set has too few images.
        """
        smaller = min(len(images), len(reference))  # type: ignore[arg-type]
        if smaller <= self._neighbours:
            raise BigrError(
                f"a set of {smaller} images is too small for evaluation.precision_recall_neighbours = "
                f"{self._neighbours}; make more images (samples.count, the val split) or lower the setting"
            )
        with self._on_device():
            figures = torch_fidelity.calculate_metrics(
                input1=images,
                input2=reference,
                kid_subset_size=min(self._kid_subset_size, smaller),
                **self._options,
            )
        return {key: figures[name] for name, key in _KEYS[self.extractor].items()}

    def _on_device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over named tensors (names, types, shapes, values), in whatever file or order they come."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_inception_weights(path: Path) -> dict[str, Tensor]:
    """The weights of `inception-v3-compat`, by name: a .safetensors file, or torch-fidelity's published .pth.

    Of a .pth nothing but tensors is unpickled (`weights_only`). Raises `BigrError` where the file is missing, cannot be
    read, or does not fit.
    """
    if not path.is_file():
        raise BigrError(f"evaluation.extractor_weights: {path} is not there; nothing is downloaded, bring the file")
    read: Callable[[Path], Any] = load_file if path.suffix == ".safetensors" else _read_pth
    try:
        weights = read(path)
        InceptionExtractor(_NAMES[INCEPTION], ["2048"], weights)
    except pickle.UnpicklingError:
        raise BigrError(
            f"evaluation.extractor_weights: {path} does not hold Inception's weights, tensors alone"
        ) from None
    except (SafetensorError, RuntimeError, ValueError, TypeError, AttributeError, EOFError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BigrError(f"evaluation.extractor_weights: {path} does not hold Inception's weights: {reason}") from None
    return weights


def _read_pth(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)
