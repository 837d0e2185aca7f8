"""Feature extractors: networks whose features of images the fidelity metrics compare.

The offline classifier, Inception from a file, extractors that torch-fidelity has registered, and the user's own
classes. An extractor is identified by its name and a hash of its weights (of registered and own ones also of their
code): metrics of different extractors do not compare. Nothing is downloaded without `download`.
"""

import hashlib
import importlib
import inspect
import io
import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bigr.evaluation.fidelity import torchvision_import  # noqa: F401 - before torch_fidelity, which imports torchvision
from bigr.evaluation.fidelity.classifier import Classifier
from bigr.runtime.errors import BigrError

# isort: split
import torch_fidelity
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as REGISTRY
from torch_fidelity.utils import create_feature_extractor

CLASSIFIER, INCEPTION = "classifier", "inception-v3-compat"
INCEPTION_WIDTH = 2048
"""Features of Inception."""

_DISTANCES = ("fid", "kid", "prc")


class ClassifierExtractor(torch_fidelity.FeatureExtractorBase):
    """The offline classifier behind torch-fidelity's interface: layers "penultimate" and "logits"."""

    def __init__(self, name: str, features_list: list[str], classifier: Classifier, **_: Any) -> None:
        super().__init__(name, features_list)
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images uint8 [B, 3, H, W] → the layers of `features_list`: features [B, F], logits [B, C]."""
        features = self.classifier.features(images.float() / 255)
        layers = {"penultimate": features, "logits": self.classifier.head(features)}
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """The names of the layers."""
        return ("penultimate", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Logits for the score, features for the distances."""
        return "logits" if metric == "isc" else "penultimate"

    @staticmethod
    def can_be_compiled() -> bool:
        """Compiling does not pay for a network of this size."""
        return False


class InceptionExtractor(feature_extractor_inceptionv3.FeatureExtractorInceptionV3):
    """torch-fidelity's Inception with the weights `weights`."""

    def __init__(self, name: str, features_list: list[str], weights: Mapping[str, Tensor], **_: Any) -> None:
        file = io.BytesIO()  # upstream's constructor reads a file, or downloads one
        torch.save(weights, file)
        file.seek(0)
        super().__init__(name, features_list, feature_extractor_weights_path=file)


# torch-fidelity has an "inception-v3-compat" of its own, which downloads.
_OURS = {CLASSIFIER: "bigr-classifier", INCEPTION: "bigr-inception-v3-compat"}
torch_fidelity.register_feature_extractor(_OURS[CLASSIFIER], ClassifierExtractor)
torch_fidelity.register_feature_extractor(_OURS[INCEPTION], InceptionExtractor)


@dataclass(frozen=True)
class Extractor:
    """A network with its name and hash.

    network: uint8 [B, 3, H, W] → a tuple of layers; layer: the features that distances compare; score_layer: the class
    logits, or None; side: pixels of one side of the images that it takes, None for any size.
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
    """The extractor of an offline classifier."""
    extractor = _extractor(CLASSIFIER, _OURS[CLASSIFIER], device, classifier=classifier, state=classifier.state_dict())
    return replace(extractor, side=classifier.config.image_size)


def inception_extractor(weights: Mapping[str, Tensor], device: torch.device) -> Extractor:
    """Inception with weights of `read_inception_weights` or `download_inception_weights`."""
    return _extractor(INCEPTION, _OURS[INCEPTION], device, weights=weights)


def other_extractor(
    name: str, root: Path, device: torch.device, *, weights: Path | None = None, download: bool = False
) -> Extractor:
    """An extractor of torch-fidelity's registry, or the user's own class `module:Class`, imported from `root`.

    weights: torch-fidelity's `feature_extractor_weights_path`. torch-fidelity's own extractors need it, or `download`,
    with which torch-fidelity downloads them; from their files only tensors are unpickled.
    Raises `BigrError` if there is no such extractor, or its constructor fails.
    """
    own = ":" in name
    registered = _import(name, root) if own else name
    if registered not in REGISTRY:
        known = ", ".join(sorted({CLASSIFIER, *REGISTRY} - set(_OURS.values())))
        raise BigrError(f"--extractor must be module:Class of your own, or one of {known}; got {name!r}")
    if not own and weights is None and not download:
        raise BigrError(f"--extractor {name} has no weights; give --weights FILE, or --download")
    path = None if weights is None else str(weights)
    code = _digest(Path(inspect.getfile(REGISTRY[registered])).read_bytes())
    try:
        with nullcontext() if own or weights is None else _tensors_only():
            return _extractor(name, registered, device, code=code, feature_extractor_weights_path=path)
    except BigrError:
        raise
    except Exception as error:  # a user's class may raise any
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
    """The layer of the distances, and that of the score, or None if it is the same: features are not logits."""
    layers = {metric: cls.get_default_feature_layer_for_metric(metric) for metric in _DISTANCES}
    if len(set(layers.values())) > 1:
        raise BigrError(f"--extractor {name}: fid, kid and prc must have the same default layer, got {layers}")
    try:
        score = cls.get_default_feature_layer_for_metric("isc")
    except (KeyError, ValueError, NotImplementedError):
        score = None
    return layers["fid"], score if score != layers["fid"] else None


def _import(name: str, root: Path) -> str:
    """Import `module:Class` with `root` on the path, and register it if its module has not; the registered name."""
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(root))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a user's module may raise any
        raise BigrError(f"--extractor {name}: it cannot be imported: {_reason(error)}") from error
    finally:
        sys.path.remove(str(root))
    if not (isinstance(found, type) and issubclass(found, torch_fidelity.FeatureExtractorBase)):
        raise BigrError(f"--extractor {name}: not a class derived from torch_fidelity.FeatureExtractorBase")
    registered = next((known for known, cls in REGISTRY.items() if cls is found), None)
    if registered is None:
        torch_fidelity.register_feature_extractor(registered := name, found)
    return registered


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
        InceptionExtractor(_OURS[INCEPTION], ["2048"], weights)
    except pickle.UnpicklingError:
        raise BigrError(f"{setting}: {path} does not hold Inception's weights, tensors alone") from None
    except (SafetensorError, RuntimeError, ValueError, TypeError, AttributeError, EOFError, OSError, KeyError) as error:
        raise BigrError(f"{setting}: {path} does not hold Inception's weights: {_reason(error)}") from None
    return weights


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
