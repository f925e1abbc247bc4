"""MLflow. MLFLOW_TRACKING_URI, MLFLOW_TRACKING_TOKEN and so on are read from the environment."""

import importlib
import math
from typing import Any, ClassVar

from common.exchange.metrics import PROFILE
from deploy.logger import LoggedRun, LoggerConfig, numbers

TAG = "varkd.run"
MOST_PER_CALL = 1000
"""Metrics that MLflow's servers take at a time."""


class Config(LoggerConfig):
    package: ClassVar[str] = "mlflow"

    experiment: str = "varkd"
    """Experiment that the run appears in; made where there is none."""

    def open(self, run: LoggedRun) -> "MlflowLogger":
        mlflow: Any = importlib.import_module(self.package)
        client = mlflow.MlflowClient()
        found = client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else client.create_experiment(self.experiment)
        earlier = client.search_runs([experiment], f"tags.`{TAG}` = '{run.id}'", max_results=1)
        if earlier:
            run_id = earlier[0].info.run_id
            client.update_run(run_id, status="RUNNING")
        else:
            made = client.create_run(experiment, run_name=run.name, tags={TAG: run.id})
            run_id = made.info.run_id
            client.log_dict(run_id, dict(run.config), "config.json")
        return MlflowLogger(client, run_id, mlflow.entities.Metric)


class MlflowLogger:
    """A step that a resumed run repeats is there twice, with both times."""

    def __init__(self, client: Any, run_id: str, metric: Any) -> None:
        self._client, self._run_id, self._metric = client, run_id, metric

    def write(self, rows: list[dict[str, Any]]) -> None:
        found = [
            self._metric(name, value, int(1000 * row["time"]), row["step"])
            for row in rows
            if PROFILE not in row
            for name, value in numbers(row).items()
            if math.isfinite(value)
        ]
        for first in range(0, len(found), MOST_PER_CALL):
            self._client.log_batch(self._run_id, found[first : first + MOST_PER_CALL])

    def close(self) -> None:
        self._client.set_terminated(self._run_id)
