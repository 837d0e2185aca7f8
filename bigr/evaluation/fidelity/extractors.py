"""Feature extractors: what turns images into the numbers that distances between sets are measured in.

The offline classifier, Inception from a file, whatever torch-fidelity has registered under a name, and classes of the
user's own. Each is known by its name and a hash of its weights (of foreign ones also of their code): figures of other
extractors do not compare. Nothing is downloaded unless `download` says so.
"""

import contextlib
import hashlib
import importlib
import inspect
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bigr.evaluation.fidelity import _torchvision  # noqa: F401 - torch_fidelity imports torchvision: this line goes first
from bigr.evaluation.fidelity.classifier import Classifier
from bigr.runtime.errors import BigrError

# isort: split
import torch_fidelity
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as REGISTRY
from torch_fidelity.utils import create_feature_extractor

CLASSIFIER, INCEPTION = "classifier", "inception-v3-compat"
INCEPTION_WIDTH = 2048
"""Numbers that Inception makes of an image."""

_DISTANCES = ("fid", "kid", "prc")
_DOWNLOADED = feature_extractor_inceptionv3.load_state_dict_from_url


class ClassifierExtractor(torch_fidelity.FeatureExtractorBase):
    """The offline classifier as torch-fidelity wants it: its features, and its logits for a score."""

    def __init__(self, name: str, features_list: list[str], classifier: Classifier, **_: Any) -> None:
        super().__init__(name, features_list)
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images uint8 [B, 3, H, W] → the layers asked for, [B, F] and [B, C]."""
        features = self.classifier.features(images.float() / 255)
        layers = {"penultimate": features, "logits": self.classifier.head(features)}
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """The two layers that there are."""
        return ("penultimate", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Logits for the score, features for every distance."""
        return "logits" if metric == "isc" else "penultimate"

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


# Named for this project: torch-fidelity's own "inception-v3-compat" is the one that downloads.
_OURS = {CLASSIFIER: "bigr-classifier", INCEPTION: "bigr-inception-v3-compat"}
torch_fidelity.register_feature_extractor(_OURS[CLASSIFIER], ClassifierExtractor)
torch_fidelity.register_feature_extractor(_OURS[INCEPTION], InceptionExtractor)


@dataclass(frozen=True)
class Extractor:
    """A network that is ready, and what it is known by.

    network: uint8 [B, 3, H, W] → a tuple of its layers; layer: the one that distances are measured in; score_layer:
    class logits, where it has a layer of its own for torch-fidelity's `isc`; side: of the square images that it takes,
    None where it takes any.
    """

    name: str
    hash: str
    network: torch_fidelity.FeatureExtractorBase
    layer: str
    score_layer: str | None
    device: torch.device
    side: int | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images uint8 [B, 3, H, W] → features [B, F] and logits [B, C] or None, on the extractor's device."""
        layers = self.network.convert_features_tuple_to_dict(self.network(images.to(self.device)))
        return layers[self.layer], layers[self.score_layer] if self.score_layer else None


def classifier_extractor(classifier: Classifier, device: torch.device) -> Extractor:
    """The offline classifier."""
    made = _extractor(CLASSIFIER, _OURS[CLASSIFIER], device, classifier=classifier, state=classifier.state_dict())
    return replace(made, side=classifier.config.image_size)


def inception_extractor(weights: Mapping[str, Tensor], device: torch.device) -> Extractor:
    """Inception with these weights (`read_inception_weights`, `download_inception_weights`)."""
    return _extractor(INCEPTION, _OURS[INCEPTION], device, weights=weights)


def other_extractor(
    name: str, root: Path, device: torch.device, *, weights: Path | None = None, download: bool = False
) -> Extractor:
    """An extractor of torch-fidelity's registry, or a class of the user's own: `module:Class`, found below `root`.

    A class that its module has not registered is registered here. weights: handed on as torch-fidelity's
    `feature_extractor_weights_path`. Those that torch-fidelity brings need it, or `download`, which lets torch-fidelity
    fetch them; of a file nothing but tensors is unpickled then. Raises `BigrError` where there is no such extractor, or
    it cannot be made.
    """
    own = ":" in name
    registered = _import(name, root) if own else name
    if registered not in REGISTRY:
        known = ", ".join(sorted({CLASSIFIER, *REGISTRY} - set(_OURS.values())))
        raise BigrError(f"--extractor: no {name!r}; allowed: {known}, or module:Class for one of your own")
    if not own and weights is None and not download:
        raise BigrError(f"--extractor {name} has no weights; give --weights FILE, or --download to let it fetch them")
    path = None if weights is None else str(weights)
    code = _digest(Path(inspect.getfile(REGISTRY[registered])).read_bytes())
    try:
        with contextlib.nullcontext() if own or weights is None else _tensors_only():
            return _extractor(name, registered, device, code=code, feature_extractor_weights_path=path)
    except BigrError:
        raise
    except Exception as error:  # whatever a class of the user's does in its constructor
        raise BigrError(f"--extractor {name}: it cannot be made: {_reason(error)}") from error


def _extractor(
    name: str,
    registered: str,
    device: torch.device,
    *,
    code: str = "",
    state: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> Extractor:
    layer, score_layer = _layers(name, REGISTRY[registered])
    layers = list(dict.fromkeys([layer, *([score_layer] if score_layer else [])]))
    network = create_feature_extractor(registered, layers, cuda=False, verbose=False, **options).to(device)
    weights = weights_hash(network.state_dict() if state is None else state)
    return Extractor(
        name, _digest(f"{weights} {code}".encode()) if code else weights, network, layer, score_layer, device
    )


def _layers(name: str, cls: type[torch_fidelity.FeatureExtractorBase]) -> tuple[str, str | None]:
    """The layer of the distances, and that of the score where it is another one: features are no logits."""
    layers = {metric: cls.get_default_feature_layer_for_metric(metric) for metric in _DISTANCES}
    if len(set(layers.values())) > 1:
        raise BigrError(f"--extractor {name}: its layers for {layers} differ; one layer for all three is needed")
    try:
        score = cls.get_default_feature_layer_for_metric("isc")
    except (KeyError, ValueError, NotImplementedError):
        score = None
    return layers["fid"], score if score != layers["fid"] else None


def _import(name: str, root: Path) -> str:
    """Import `module:Class` with `root` on the path; the name under which it is registered."""
    module, _, attribute = name.partition(":")
    try:
        with patch.object(sys, "path", [str(root), *sys.path]):
            found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module of the user's does when it is imported
        raise BigrError(f"--extractor {name}: it cannot be imported: {_reason(error)}") from error
    if not (isinstance(found, type) and issubclass(found, torch_fidelity.FeatureExtractorBase)):
        raise BigrError(f"--extractor {name}: not a class derived from torch_fidelity.FeatureExtractorBase")
    registered = next((known for known, cls in REGISTRY.items() if cls is found), None)
    if registered is None:
        torch_fidelity.register_feature_extractor(registered := name, found)
    return registered


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """torch-fidelity unpickles files of weights whole; here `torch.load` reads tensors and nothing else."""
    load = torch.load
    with patch.object(torch, "load", lambda *args, **options: load(*args, **{**options, "weights_only": True})):
        yield


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over named tensors (names, types, shapes, values), in whatever file or order they come."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def download_inception_weights() -> dict[str, Tensor]:
    """Inception's weights as torch-fidelity publishes them, fetched once into torch's own cache, checked by their hash.

    Nothing but tensors is unpickled. Raises `BigrError` where they cannot be had.
    """
    fetch = partial(_DOWNLOADED, map_location="cpu", progress=False, check_hash=True, weights_only=True)
    try:
        return fetch(feature_extractor_inceptionv3.URL_INCEPTION_V3)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise BigrError(f"--download: Inception's weights cannot be had ({_reason(error)}); give --weights") from None


def read_inception_weights(path: Path, setting: str = "evaluation.extractor_weights") -> dict[str, Tensor]:
    """The weights of `inception-v3-compat`, by name: a .safetensors file, or torch-fidelity's published .pth.

    Of a .pth nothing but tensors is unpickled (`weights_only`). setting: what named the file. Raises `BigrError` where
    the file is missing, cannot be read, or does not fit.
    """
    if not path.is_file():
        raise BigrError(f"{setting}: {path} is not there; nothing is downloaded, bring the file")
    read: Callable[[Path], Any] = load_file if path.suffix == ".safetensors" else _read_pth
    try:
        weights = read(path)
        InceptionExtractor(_OURS[INCEPTION], ["2048"], weights)
    except pickle.UnpicklingError:
        raise BigrError(f"{setting}: {path} does not hold Inception's weights, tensors alone") from None
    except (SafetensorError, RuntimeError, ValueError, TypeError, AttributeError, EOFError, OSError, KeyError) as error:
        raise BigrError(f"{setting}: {path} does not hold Inception's weights: {_reason(error)}") from None
    return weights


def _read_pth(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
