"""Records runs in MLflow. The only package that imports `mlflow`, and only when a stage runs.

Each executed stage is a run below one parent run per execution of the pipeline (`executions`). Its tags
`dvc.dep.<path>` and `dvc.out.<path>` hold the DVC hashes of the data that it read and wrote, its file code.json those
of its code. The parent has all settings and the evaluation's metrics and pictures, so that MLflow compares executions.

The store is `mlflow.db` in the project folder, or MLFLOW_TRACKING_URI; the experiment `bigr`, or
MLFLOW_EXPERIMENT_NAME. Calls are made on a separate thread: a stage never waits for them, and goes on without MLflow.
"""

from bigr.runtime.extras import require

require("pipeline", "bigr.tracking")

from bigr.tracking.report import Tracker  # noqa: E402  # behind the check

__all__ = ["Tracker"]
