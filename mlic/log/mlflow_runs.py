"""Runs in MLflow. One is found again by its identity, so a resumed run is the same run there too."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from mlic.log.contents import Contents

_IDENTITY, _PARENT = "mlic.identity", "mlflow.parentRunId"
_AT_ONCE, _PARAMS, _LENGTH = 900, 100, 5000  # limits of one request: metrics, parameters, characters of a value
_DONE = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_EPOCH = "epoch"


class MlflowRuns:
    """The runs of one MLflow server, which MLFLOW_TRACKING_URI names. Raises what MLflow raises."""

    def __init__(self) -> None:
        # A server that is away is said within seconds. MLflow itself would try for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient()
        self.where = f"mlflow at {self._client.tracking_uri}"
        self._experiment: str | None = None
        self._ids = dict[str, str]()
        self._steps = dict[str, int]()

    def send(self, run: Contents, parent: Contents | None = None) -> None:
        """Send what the server does not have yet of a run's settings, epochs and measurements."""
        run_id = self._run(run, parent)
        last = self._steps[run.identity]
        for step in sorted(number for number in run.rows if number > last):
            # The number of the epoch comes last: an epoch without it was not sent whole, and is sent again.
            self._metrics(run_id, {name: v for name, v in run.rows[step].items() if name != _EPOCH}, step)
            self._metrics(run_id, {_EPOCH: float(step)}, step)
            self._steps[run.identity] = step

    def close(self, run: Contents, files: bool) -> None:
        """Send measurements and files, and say how the run ended."""
        run_id = self._ids[run.identity]
        known = self._client.get_run(run_id).data.metrics if run.summary else {}
        new = {name: value for name, value in run.summary.items() if known.get(name) != value}
        if new:
            self._metrics(run_id, new, max(run.rows, default=0))
        for path, folder in run.files if files else ():
            self._client.log_artifact(run_id, str(path), folder or None)
        if run.has_ended:
            self._client.set_terminated(run_id, _DONE.get(run.status, "FINISHED"))

    def _run(self, run: Contents, parent: Contents | None) -> str:
        if run.identity in self._ids:
            return self._ids[run.identity]
        known = self._client.search_runs([self._folder()], f"tags.`{_IDENTITY}` = '{run.identity}'", max_results=1)
        if known:
            run_id = known[0].info.run_id
            self._client.update_run(run_id, status="RUNNING")
        else:
            tags = {**run.tags, _IDENTITY: run.identity}
            tags |= {_PARENT: self._ids[parent.identity]} if parent is not None else {}
            short = {name: value[:_LENGTH] for name, value in tags.items()}
            run_id = self._client.create_run(self._folder(), tags=short, run_name=run.name).info.run_id
        self._params(run_id, run.params, known[0].data.params if known else {})
        epochs = self._client.get_metric_history(run_id, _EPOCH) if known else []
        self._ids[run.identity] = run_id
        self._steps[run.identity] = max((metric.step for metric in epochs), default=0)
        return str(run_id)

    def _folder(self) -> str:
        if self._experiment is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "mlic")
            found = self._client.get_experiment_by_name(name)
            self._experiment = found.experiment_id if found else self._client.create_experiment(name)
        return str(self._experiment)

    def _params(self, run_id: str, params: Mapping[str, str], known: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        new = [Param(name, value[:_LENGTH]) for name, value in params.items() if name not in known]
        for start in range(0, len(new), _PARAMS):
            self._client.log_batch(run_id, params=new[start : start + _PARAMS])

    def _metrics(self, run_id: str, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), _AT_ONCE):
            self._client.log_batch(run_id, metrics=metrics[start : start + _AT_ONCE])
