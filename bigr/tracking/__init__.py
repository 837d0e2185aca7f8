"""What happened, in MLflow: the only package that imports `mlflow`, and only when a stage runs.

Each executed stage is a run named after it, nested under one parent run per pipeline execution (`executions`). A
stage run holds the stage's settings, its curves by step, final figures, pictures, the model files that it wrote, the
git commit, and as tags `dvc.dep.<path>` and `dvc.out.<path>` the DVC hash of all data that it read and wrote; the
hashes of the code that it ran with are its file code.json. What the machine did is its system metrics. What it
read is also its datasets, so that runs are found by their data. Data (shards, codes, samples) is recorded by hash
alone: DVC keeps it. The parent holds all settings, the figures
of evaluation, and the pictures of samples and evaluation, so that two executions compare there.

The store is `mlflow.db` in the project folder with files in `mlartifacts/` beside it; MLFLOW_TRACKING_URI redirects
everything, MLFLOW_EXPERIMENT_NAME renames the experiment `bigr`. All calls are made on a thread of their own: a stage
never waits for them, and goes on where MLflow is out of reach.
"""

from bigr.runtime.extras import require

require("pipeline", "bigr.tracking")

from bigr.tracking.report import Tracker  # noqa: E402  # behind the check
from bigr.tracking.store import find_writer  # noqa: E402

__all__ = ["Tracker", "find_writer"]
