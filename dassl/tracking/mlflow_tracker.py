"""MLflow. Server and experiment are its own environment variables, MLFLOW_*."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.tracking.base import PROJECT, TrackedRun, Tracker

__all__ = ["MLflowTracker"]

_FOLDER = "mlruns"  # in the current folder, where MLflow itself has always put it
_WAITING, _SECONDS = 50, 10.0  # numbers are sent when so many wait, or the last were so long ago
_PARAMETERS = 100  # that MLflow takes at once
_LONGEST = 500  # characters of a parameter that every version takes
# A server that does not answer: MLflow would try for minutes, and the run would wait for it.
_IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class MLflowTracker(Tracker):
    """A run of MLflow; in a folder of files unless MLFLOW_TRACKING_URI names another place."""

    def start(self, run: TrackedRun, earlier: str) -> str:
        """Begin or continue a run, see `Tracker.start`."""
        for name, value in _IMPATIENT.items():
            os.environ.setdefault(name, value)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or Path(_FOLDER).absolute().as_uri()
        if uri.startswith("file:"):
            # Newer versions want to be asked for files, which several jobs can write at once.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self._metrics: list[Any] = []
        self._sent = time.monotonic()
        self._id = self._continued(earlier) or self._begun(run)
        self.place = f"{uri}, run {self._id}"
        return self._id

    def _continued(self, earlier: str) -> str:
        """Return the id of the run to continue; "" if there is none, or another server has it."""
        from mlflow.exceptions import MlflowException

        if not earlier:
            return ""
        try:
            self._client.update_run(earlier, status="RUNNING")
        except MlflowException:
            return ""
        return earlier

    def _begun(self, run: TrackedRun) -> str:
        from mlflow.entities import Param

        tags = {"group": run.group, "folder": str(run.folder)}
        created = self._client.create_run(self._experiment(), run_name=run.name, tags=tags)
        parameters = [
            Param(_allowed(key), str(value)[:_LONGEST]) for key, value in run.config.items()
        ]
        for start in range(0, len(parameters), _PARAMETERS):
            part = parameters[start : start + _PARAMETERS]
            self._client.log_batch(created.info.run_id, params=part)
        return created.info.run_id

    def _experiment(self) -> str:
        """Return the id of the experiment, which another job may be making at this moment."""
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        try:
            return self._client.create_experiment(name)
        except MlflowException:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return found.experiment_id

    def scalar(self, tag: str, value: float, step: int | None) -> None:
        """Write a number, together with others: each request is waited for."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        self._metrics.append(Metric(_allowed(tag), value, now, step or 0))
        if len(self._metrics) >= _WAITING or time.monotonic() - self._sent > _SECONDS:
            self._send()

    def _send(self) -> None:
        waiting, self._metrics = self._metrics, []
        self._sent = time.monotonic()
        if waiting:
            self._client.log_batch(self._id, metrics=waiting)

    def result(self, content: Mapping[str, Any]) -> None:
        """Write the metrics, and the classes as a table."""
        for name, value in content["metrics"].items():
            self.scalar(f"result/{name}", float(value), None)
        self._send()
        rows = content["per_class"]
        if rows:
            columns = {name: [row[name] for row in rows] for name in rows[0]}
            self._client.log_table(self._id, columns, "per_class.json")

    def files(self, paths: Sequence[Path]) -> None:
        """Copy files to where MLflow keeps them."""
        for path in paths:
            self._client.log_artifact(self._id, str(path))

    def close(self, failed: bool) -> None:
        """End the run with its status."""
        self._send()
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


def _allowed(name: str) -> str:
    """Return a name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-. /]", "_", name)
