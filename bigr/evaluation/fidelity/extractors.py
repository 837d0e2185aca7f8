"""Feature extractors: networks whose features of images the fidelity metrics compare.

An extractor is identified by its name and a hash of its weights, of registered and own ones also of their code: metrics
of different extractors do not compare. Nothing is downloaded without `download`.
"""

import hashlib
import importlib
import inspect
import io
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bigr.evaluation.fidelity.classifier import Classifier
from bigr.runtime import torchvision_import  # noqa: F401 - before torch_fidelity, which imports torchvision
from bigr.runtime.errors import BigrError

# isort: split
import torch_fidelity
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as REGISTRY

CLASSIFIER, INCEPTION = "classifier", "inception-v3-compat"

_DISTANCES = ("fid", "kid", "prc")


class InceptionExtractor(feature_extractor_inceptionv3.FeatureExtractorInceptionV3):
    """torch-fidelity's Inception with the weights `weights`."""

    def __init__(self, name: str, features_list: list[str], weights: Mapping[str, Tensor], **_: Any) -> None:
        file = io.BytesIO()  # upstream's constructor reads a file, or downloads one
        torch.save(weights, file)
        file.seek(0)
        super().__init__(name, features_list, feature_extractor_weights_path=file)


@dataclass(frozen=True)
class Extractor:
    """A network with its name and hash.

    network: images uint8 [B, 3, H, W] → features [B, F], and class logits [B, C] if it has them; layer: the name of the
    features; side: pixels of one side of the images that it takes, None for any size.
    """

    name: str
    hash: str
    network: Callable[[Tensor], Sequence[Tensor]]
    layer: str
    device: torch.device
    side: int | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images uint8 [B, 3, H, W] → features [B, F] and logits [B, C] or None, on the extractor's device."""
        features, *logits = self.network(images.to(self.device))
        return features, logits[0] if logits else None


def classifier_extractor(classifier: Classifier, device: torch.device) -> Extractor:
    """The extractor of an offline classifier, which is moved to `device`."""
    classifier.to(device).eval()

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        features = classifier.features(images.float() / 255)
        return features, classifier.head(features)

    side = classifier.config.image_size
    return Extractor(CLASSIFIER, weights_hash(classifier.state_dict()), network, "penultimate", device, side)


def inception_extractor(weights: Mapping[str, Tensor], device: torch.device) -> Extractor:
    """Inception with weights of `read_inception_weights` or `download_inception_weights`."""
    return _extractor(INCEPTION, INCEPTION, InceptionExtractor, device, weights=weights)


def other_extractor(
    name: str, root: Path, device: torch.device, *, weights: Path | None = None, download: bool = False
) -> Extractor:
    """An extractor of torch-fidelity's registry, or the user's own class `module:Class`, imported from `root`.

    weights: torch-fidelity's `feature_extractor_weights_path`; its own extractors need it, or `download`. From their
    files only tensors are unpickled. Raises `BigrError` if there is no such extractor, or its constructor fails.
    """
    own = ":" in name
    cls = _import(name, root) if own else REGISTRY.get(name)
    if cls is None:
        known = ", ".join(sorted({CLASSIFIER, *REGISTRY}))
        raise BigrError(f"--extractor must be module:Class of your own, or one of {known}; got {name!r}")
    if not own and weights is None and not download:
        raise BigrError(f"--extractor {name} has no weights; give --weights FILE, or --download")
    registered = next((known for known, other in REGISTRY.items() if other is cls), name) if own else name
    path = None if weights is None else str(weights)
    code = _digest(Path(inspect.getfile(cls)).read_bytes())
    try:
        with nullcontext() if own or weights is None else _tensors_only():
            return _extractor(name, registered, cls, device, code=code, feature_extractor_weights_path=path)
    except BigrError:
        raise
    except Exception as error:  # a user's class may raise any
        raise BigrError(f"--extractor {name}: it cannot be made: {_reason(error)}") from error


def _extractor(
    name: str,
    registered: str,
    cls: type[torch_fidelity.FeatureExtractorBase],
    device: torch.device,
    *,
    code: str = "",
    **options: Any,
) -> Extractor:
    layer, score_layer = _layers(name, cls)
    network = cls(registered, [layer, score_layer] if score_layer else [layer], **options)
    network.to(device).eval().requires_grad_(False)
    weights = weights_hash(network.state_dict())
    return Extractor(name, _digest(f"{weights} {code}".encode()) if code else weights, network, layer, device)


def _layers(name: str, cls: type[torch_fidelity.FeatureExtractorBase]) -> tuple[str, str | None]:
    """The layer of the distances, and that of the score, or None if it is the same: features are not logits."""
    layers = {metric: cls.get_default_feature_layer_for_metric(metric) for metric in _DISTANCES}
    if len(set(layers.values())) > 1:
        raise BigrError(f"--extractor {name}: fid, kid and prc must have the same default layer, got {layers}")
    try:
        score = cls.get_default_feature_layer_for_metric("isc")
    except (KeyError, ValueError, NotImplementedError):
        score = None
    return layers["fid"], score if score != layers["fid"] else None


def _import(name: str, root: Path) -> type[torch_fidelity.FeatureExtractorBase]:
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(root))
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a user's module may raise any
        raise BigrError(f"--extractor {name}: it cannot be imported: {_reason(error)}") from error
    finally:
        sys.path.remove(str(root))
    if not (isinstance(cls, type) and issubclass(cls, torch_fidelity.FeatureExtractorBase)):
        raise BigrError(f"--extractor {name}: not a class derived from torch_fidelity.FeatureExtractorBase")
    return cls


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Make `torch.load` unpickle tensors alone; torch-fidelity would unpickle everything."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        os.environ.update({name: before} if before is not None else {})


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and values of tensors, whatever their order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def download_inception_weights() -> dict[str, Tensor]:
    """Inception's weights as torch-fidelity publishes them, by name: downloaded once to torch's cache, checked by hash.

    Only tensors are unpickled. Raises `BigrError` if the download fails.
    """
    url = feature_extractor_inceptionv3.URL_INCEPTION_V3
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise BigrError(f"--download: Inception's weights cannot be had ({_reason(error)}); give --weights") from None


def read_inception_weights(path: Path, setting: str = "evaluation.extractor_weights") -> dict[str, Tensor]:
    """The weights of `inception-v3-compat`, by name: a .safetensors file, or torch-fidelity's published .pth.

    From a .pth only tensors are unpickled. setting: the option or setting that named the file, for errors. Raises
    `BigrError` if the file is missing, cannot be read, or holds other tensors.
    """
    if not path.is_file():
        raise BigrError(f"{setting}: {path} is not there; nothing is downloaded, bring the file")
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        InceptionExtractor(INCEPTION, ["2048"], weights)
    except pickle.UnpicklingError:
        raise BigrError(f"{setting}: {path} does not hold Inception's weights, tensors alone") from None
    except (SafetensorError, RuntimeError, ValueError, TypeError, AttributeError, EOFError, OSError, KeyError) as error:
        raise BigrError(f"{setting}: {path} does not hold Inception's weights: {_reason(error)}") from None
    return weights


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
