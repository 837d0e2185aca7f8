"""One version of the model as MLflow keeps it: a folder with weights, code, signature and example, and no pickle.

`MLmodel` has the signature and the record of what it is served with (`served_record.py`); `artifacts/tokenizer` and
`artifacts/bigr` are the project's model folders (config.json, model.safetensors), `artifacts/features` is what makes
their features comparable, where that was measured; `served.py` is the code that serves them; `samples.png` shows what
the model draws.
"""

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bigr.tracking.registry.served_record import ServedRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow.models import Model
    from mlflow.types import ParamSchema

    from bigr.config import Settings

CODE = Path(__file__).with_name("served.py")
MODELS = ("tokenizer", "bigr")
BESIDE = ("features", "text")
"""What is kept with the models where the project has it; a version is the same version without it."""
REQUIREMENTS = ("torch", "numpy", "pillow", "safetensors", "tqdm", "mlflow")
"""What serving imports, besides the package `bigr` itself."""
TEXT_REQUIREMENTS = ("tokenizers", "transformers")
"""The same of a model that takes texts."""
TEXT_EXAMPLE = ["a red circle"]


def write(
    folder: Path, root: Path, settings: "Settings", classes: "Sequence[str]", about: "Model | None" = None
) -> None:
    """Write the new `folder` from the models of the project `root`.

    classes: their names, in the order of labels; about: MLflow's own description, where it has begun one.
    """
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    models = root / "models"
    kept = [*MODELS, *(name for name in BESIDE if (models / name).is_dir())]
    texts = settings.text.used
    # Of any type: MLflow's server would make int64 of whatever it can, 3 of 3.5 and 1 of true. served.py looks at them.
    # Named: without a name an empty list does not reach served.py.
    labels = Schema([TensorSpec(np.dtype("object"), (-1,), "labels")])
    save_model(
        folder,
        python_model=CODE,
        artifacts={name: str(models / name) for name in kept},
        model_config=ServedRecord.of(settings, classes).write(),
        signature=ModelSignature(labels, Schema([ColSpec(DataType.string)]), params_of(settings)),
        input_example=np.array(TEXT_EXAMPLE, object) if texts else np.arange(min(2, len(classes)), dtype=np.int64),
        pip_requirements=[
            f"{name}=={version(name).split('+')[0]}" for name in (*REQUIREMENTS, *(TEXT_REQUIREMENTS if texts else ()))
        ],
        mlflow_model=about,
    )
    picture = root / "outputs" / "samples.png"
    if picture.is_file():
        shutil.copy(picture, folder / picture.name)


def params_of(settings: "Settings") -> "ParamSchema":
    """What a request may set, with the values that the version was measured under; `served.py` reads it."""
    from mlflow.types import DataType, ParamSchema, ParamSpec

    samples = settings.samples
    steps = samples.diffusion_steps
    return ParamSchema(
        [
            ParamSpec("seed", DataType.long, settings.seed),
            ParamSpec("iterations", DataType.long, samples.iterations),
            ParamSpec("diffusion_steps", DataType.long, steps, shape=(-1,) if isinstance(steps, list) else None),
            ParamSpec("guidance_scale", DataType.double, samples.guidance_scale),
            ParamSpec("preset", DataType.string, samples.preset),
        ]
    )
