"""What MLflow serves: labels in, images out. Kept beside the weights of each version (models-from-code, no pickle).

MLflow runs this file when it loads a version; `bigr[pipeline]` must be installed there. The input is class numbers
[n]; the output n PNG files, each as a string in base64. Image i of a request is drawn as image i of the stage
`samples` is: for the same label, seed and settings it is the same image.
"""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image
from torch import Tensor

from bigr.imaging.drawing import SamplingOptions, limits
from bigr.interop.folders import load_model
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.runtime.device import autocast, resolve_device
from bigr.runtime.errors import BigrError
from bigr.runtime.seeds import derive_seed
from bigr.sampling.decode import batched, decoded
from bigr.sampling.unmask import Iteration, Sampling, check_finite, sample_codes
from bigr.tracking.registry.stopping import is_abandoned

ADJUSTABLE = ("seed", "iterations", "diffusion_steps", "guidance_scale")
"""What a request may set of the seed and the sampler."""


_LONGEST_SHOWN = 40  # of a wrong label: it may be anything


class InvalidRequest(MlflowException):
    """A request that cannot be answered: status 400 and one sentence."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, error_code=INVALID_PARAMETER_VALUE)
        self.sentence = sentence

    def serialize_as_json(self, **_: object) -> str:
        """The body of the answer. MLflow's own would have the whole request before the sentence."""
        return json.dumps({"error_code": self.error_code, "message": self.sentence})


class Served(PythonModel):
    """Tokenizer and model of one version, with the sampling settings that it was measured under."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read both model folders; `context.model_config` is what `bigr.tracking.registry.package` wrote."""
        self.config: Mapping[str, Any] = context.model_config
        self.device = resolve_device("auto")
        self.tokenizer = load_model(Path(context.artifacts["tokenizer"]), Tokenizer).to(self.device)
        self.model = load_model(Path(context.artifacts["bigr"]), BiGR).to(self.device)
        check_finite(self.model)

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> list[str]:
        """PNG images in base64 for class numbers [n], n from 1 to the setting `serving.max_images` of the version.

        params: as in the signature; what is left out is as measured. Raises `InvalidRequest`, answered as
        400, for labels or a parameter that cannot be.
        """
        # It is a mapping of one array, as the signature's input has a name; of another type hint MLflow complains.
        labels = self._labels(model_input["labels"])
        given = {name: value for name, value in (params or {}).items() if value is not None}
        sampling = self._sampling(given)
        seed = int(given.get("seed", self.config["seed"]))
        seeds = [derive_seed(seed, "samples", index) for index in range(len(labels))]
        images: list[str] = []
        for places in batched(len(labels), int(self.config["batch_size"])):
            some = slice(places.start, places.stop)
            with autocast(self.device, self.config["precision"], self.model.config.dim):
                codes = sample_codes(
                    self.model, labels[some].to(self.device), sampling, seeds[some], on_iteration=_go_on
                )
            images += [_png(image) for image in decoded(self.tokenizer, codes)]
        return images

    def _labels(self, asked: np.ndarray) -> Tensor:
        """What the model is given for the labels of a request, int64 [n]."""
        classes, most = self.model.config.num_classes, int(self.config["max_images"])
        if asked.ndim != 1 or not 1 <= len(asked) <= most:
            got = f", got {len(asked)}" if asked.ndim == 1 else ""
            raise InvalidRequest(f"labels must be a flat list of 1 to {most} numbers{got}")
        for label in asked.tolist():
            if type(label) is not int or not 0 <= label < classes:  # true is 1 to Python
                raise InvalidRequest(
                    f"labels must be whole numbers from 0 to {classes - 1}, the model's classes, got {_shown(label)}"
                )
        labels = torch.tensor(asked.tolist(), dtype=torch.int64)
        # A model trained without labels knows the unconditional row alone.
        return labels if self.config["use_labels"] else torch.full_like(labels, classes)

    def _sampling(self, given: Mapping[str, Any]) -> Sampling:
        kinds = {"seed": int, "iterations": int, "diffusion_steps": int, "guidance_scale": float}
        how = SamplingOptions(**{name: kinds[name](given[name]) for name in ADJUSTABLE if name in given})
        try:
            return how.applied(Sampling(**self.config["samples"]), limits(self.model))
        except BigrError as error:
            raise InvalidRequest(str(error)) from None


def _go_on(_: Iteration) -> None:
    """End the work for a client that has gone: after each iteration."""
    if is_abandoned():
        raise InvalidRequest("nobody waits for the answer")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _png(image: Tensor) -> str:
    """An image uint8 [H, W, 3] as a PNG file in base64."""
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


set_model(Served())
