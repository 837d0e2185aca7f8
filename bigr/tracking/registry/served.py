"""What MLflow serves: labels in, images out. Kept beside the weights of each version (models-from-code, no pickle).

MLflow runs this file when it loads a version; `bigr[pipeline]` must be installed there. The input is class numbers
[n]; the output n PNG files, each as a string in base64. Image i of a request is image i of the stage `samples` for the
same label, seed and settings.
"""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image

from bigr.imaging.assembly import load_networks
from bigr.imaging.frames import Frame
from bigr.imaging.model import ImageModel
from bigr.runtime.errors import BigrError
from bigr.tracking.registry.served_record import ServedRecord
from bigr.tracking.registry.stopping import is_abandoned


def _steps(value: Any) -> int | list[int]:
    """One number as that; a version with a schedule takes a list, of one number or of the first and the last."""
    numbers = [int(number) for number in np.atleast_1d(value)]
    return numbers[0] if len(numbers) == 1 else numbers


_OF_THE_SAMPLER: dict[str, Callable[[Any], Any]] = {
    "iterations": int,
    "diffusion_steps": _steps,
    "guidance_scale": float,
}
ADJUSTABLE: dict[str, Callable[[Any], Any]] = {"seed": int, "preset": str, **_OF_THE_SAMPLER}
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
    """The `ImageModel` of one version, with the sampling settings that it was measured under."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read both model folders; `context.model_config` is the version's `ServedRecord`."""
        models = Path(context.artifacts["bigr"]).parent
        self.record = ServedRecord.read(context.model_config)
        self.model = ImageModel.of(models, load_networks(models, "auto"), self.record.images)

    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> list[str]:
        """PNG images in base64 for class numbers or texts [n], n from 1 to `serving.max_images` of the version.

        params: as in the signature; what is left out is as measured. Raises `InvalidRequest`, answered as 400, for
        invalid labels or parameters.
        """
        # It is a mapping of one array, as the signature's input has a name; of another type hint MLflow complains.
        labels = self._labels(model_input["labels"])
        given = {"seed": self.record.seed} | {name: v for name, v in (params or {}).items() if v is not None}
        options: Any = {name: kind(given[name]) for name, kind in ADJUSTABLE.items() if name in given}
        if "preset" in options:  # MLflow fills in the version's own values of what a request leaves out
            own = {name: kind(getattr(self.record.images.sampling, name)) for name, kind in _OF_THE_SAMPLER.items()}
            options = {name: value for name, value in options.items() if name not in own or own[name] != value}
        try:
            return [_png(image) for image in self.model.generate(labels, on_step=_check_awaited, **options)]
        except BigrError as error:
            raise InvalidRequest(str(error)) from None

    def _labels(self, asked: np.ndarray) -> list[Any]:
        """The labels or texts of a request. Raises `InvalidRequest` where one is neither, or there are too many."""
        classes, most = len(self.model.classes), self.record.max_images
        if asked.ndim != 1 or not 1 <= len(asked) <= most:
            got = f", got {len(asked)}" if asked.ndim == 1 else ""
            kind = "texts" if self.model.takes_texts else "numbers"
            raise InvalidRequest(f"labels must be a flat list of 1 to {most} {kind}{got}")
        labels: list[Any] = asked.tolist()
        for label in labels:
            if self.model.takes_texts:
                if type(label) is not str:
                    raise InvalidRequest(f"labels must be texts, which this model takes, got {_shown(label)}")
                continue
            if type(label) is not int or not 0 <= label < classes:  # true is 1 to Python
                raise InvalidRequest(
                    f"labels must be whole numbers from 0 to {classes - 1}, the model's classes, got {_shown(label)}"
                )
        return labels


def _check_awaited(_: Frame) -> None:
    """Called after each iteration: ends the work where the client has gone."""
    if is_abandoned():
        raise InvalidRequest("the client has disconnected")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _png(image: Image.Image) -> str:
    """An image as a PNG file in base64."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


set_model(Served())
