"""Records runs in MLflow. The only package that imports `mlflow`, and only when a stage runs.

Each executed stage is a run named after it, nested under one parent run per execution of the pipeline (`executions`). A
stage run holds the stage's settings, its curves by step, final metrics, pictures, the model files that it wrote, and
the git commit. Its tags `dvc.dep.<path>` and `dvc.out.<path>` hold the DVC hashes of the data that it read and wrote,
its file code.json those of its code. The load of the machine is recorded as system metrics, and the data read also as
MLflow's datasets, so that runs are found by their data. Data (shards, codes, samples) is recorded by hash alone: DVC
stores it. The parent holds all settings, the metrics of the evaluation, and the pictures of samples and evaluation, so
that MLflow compares executions side by side.

The store is `mlflow.db` in the project folder with files in `mlartifacts/` beside it; MLFLOW_TRACKING_URI names another
one, MLFLOW_EXPERIMENT_NAME another experiment than `bigr`. All calls are made on a separate thread: a stage never waits
for them, and continues where MLflow cannot be reached.
"""

from bigr.runtime.extras import require

require("pipeline", "bigr.tracking")

from bigr.tracking.report import Tracker  # noqa: E402  # behind the check
from bigr.tracking.store import find_writer  # noqa: E402

__all__ = ["Tracker", "find_writer"]
