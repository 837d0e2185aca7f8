"""What MLflow serves: labels in, images out. Kept beside the weights of each version (models-from-code, no pickle).

MLflow runs this file when it loads a version; the package `bigr` must be installed there. The input is class numbers,
int64 [n]; the output n PNG files, each as a string in base64. Image i of a request is drawn as image i of the stage
`samples` is: for the same label, seed and settings it is the same image.
"""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image
from torch import Tensor

from bigr.errors import BigrError
from bigr.imaging.drawing import How, limits
from bigr.interop.folders import load_model
from bigr.models.bigr import BiGR
from bigr.models.tokenizer import Tokenizer
from bigr.sampling.decode import batched, decoded
from bigr.sampling.unmask import Sampling, sample_codes
from bigr.seeds import derive_seed
from bigr.training.device import autocast, resolve_device

ADJUSTABLE = ("iterations", "diffusion_steps", "guidance_scale")
"""Settings of the sampler that a request may set."""


class Served(PythonModel):
    """Tokenizer and model of one version, with the sampling settings that it was measured under."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read both model folders; `context.model_config` is what `bigr.tracking.package` wrote."""
        self.config: Mapping[str, Any] = context.model_config
        self.device = resolve_device("auto")
        self.tokenizer = load_model(Path(context.artifacts["tokenizer"]), Tokenizer).to(self.device)
        self.model = load_model(Path(context.artifacts["bigr"]), BiGR).to(self.device)

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> list[str]:
        """PNG images in base64 for class numbers [n]. params: as in the signature; what is left out is as measured.

        Raises `MlflowException`, which the server answers as 400, for a label or a parameter that cannot be.
        """
        given = params or {}
        labels = self._labels(torch.from_numpy(np.asarray(model_input, dtype=np.int64)))
        sampling = self._sampling(given)
        seed = int(given.get("seed", self.config["seed"]))
        if seed < 0:
            raise _refusal("seed", seed, "0 or more")
        seeds = [derive_seed(seed, "samples", index) for index in range(len(labels))]
        images: list[str] = []
        for places in batched(len(labels), int(self.config["batch_size"])):
            some = slice(places.start, places.stop)
            with autocast(self.device, self.config["precision"], self.model.config.dim):
                codes = sample_codes(self.model, labels[some].to(self.device), sampling, seeds[some])
            images += [_png(image) for image in decoded(self.tokenizer, codes)]
        return images

    def _labels(self, labels: Tensor) -> Tensor:
        classes = self.model.config.num_classes
        if wrong := [label for label in labels.tolist() if not 0 <= label < classes]:
            raise _refusal("labels", wrong[0], f"0 to {classes - 1}, the model's classes")
        # A model trained without labels knows the unconditional row alone.
        return labels if self.config["use_labels"] else torch.full_like(labels, classes)

    def _sampling(self, given: Mapping[str, Any]) -> Sampling:
        kinds = {"iterations": int, "diffusion_steps": int, "guidance_scale": float}
        how = How(**{name: kinds[name](given[name]) for name in ADJUSTABLE if name in given})
        try:
            return how.applied(Sampling(**self.config["samples"]), limits(self.model))
        except BigrError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


def _refusal(name: str, value: object, allowed: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(f"{name}: {value} cannot be; allowed: {allowed}")


def _png(image: Tensor) -> str:
    """An image uint8 [H, W, 3] as a PNG file in base64."""
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


set_model(Served())
