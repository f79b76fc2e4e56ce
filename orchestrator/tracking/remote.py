"""An MLflow server as the forwarder sees it. The only place that imports mlflow.

Every call can be made again after a lost answer: a run, a model and an experiment are looked for before they are
created, a point or a data set that is there already is not added, a tag and an artifact are replaced by themselves.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import mlflow.exceptions
import requests
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, RunTag
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request, verify_rest_response

from orchestrator.errors import TrackingUnavailable
from orchestrator.tracking.record import LoggedData, Point, TrainedModel

T = TypeVar("T")

TIMEOUT_S = 30
_LOG_BATCH = "/api/2.0/mlflow/runs/log-batch"
_MAX_METRICS = 1000
_MAX_PARAMS = 100


class RunDeleted(Exception):
    """Somebody deleted the run or its experiment in MLflow."""


class Refused(Exception):
    """MLflow answered that it will not take this; it may take what belongs to other runs."""


class Remote:
    """One MLflow server. Every method raises TrackingUnavailable if it does not answer.

    Args:
        uri: of the server.
        timeout_s: how long one request may take.
    """

    def __init__(self, uri: str, *, timeout_s: int = TIMEOUT_S) -> None:
        # MLflow's client takes these from nowhere else.
        os.environ.update(
            {
                # MLflow's own retries would hide an outage for minutes, and create a run twice whose answer was lost.
                # The next round tries again, after it has looked.
                "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
                "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
                "DO_NOT_TRACK": "true",
            }
        )
        self.uri = uri
        self._client = MlflowClient(tracking_uri=uri)

    def experiment(self, name: str) -> str:
        """The id of the experiment of this name, which is created if there is none."""
        there = self._call(self._client.get_experiment_by_name, name)
        if there is not None:
            return there.experiment_id
        # For MLflow's web page; on which of its sides 3.17 opens is up to the address alone (`workflowType`).
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return self._call(self._client.create_experiment, name, tags=tags)

    def find_run(self, experiment_id: str, *, key: str, value: str, only_running: bool = False) -> str | None:
        """The id of the run with this tag, or None."""
        running = " and attributes.status = 'RUNNING'" if only_running else ""
        there = self._call(
            self._client.search_runs,
            [experiment_id],
            filter_string=f"tags.`{key}` = '{value}'{running}",
            max_results=1,
        )
        return there[0].info.run_id if there else None

    def run(
        self, experiment_id: str, *, key: str, value: str, name: str, start_ms: int, tags: Mapping[str, str]
    ) -> str:
        """The id of the run with the tag `key`, which is created with `tags` if there is none.

        MLflow gives out run ids itself, so a run that a lost answer left behind is found by its tag.
        """
        there = self.find_run(experiment_id, key=key, value=value)
        if there is not None:
            return there
        made = self._call(
            self._client.create_run,
            experiment_id,
            start_time=start_ms,
            tags={key: value, **tags},
            run_name=name,
        )
        return made.info.run_id

    def log_params(self, run_id: str, values: Mapping[str, str]) -> None:
        """Adds params; one that is there with another value is refused."""
        for batch in _batches(values.items(), _MAX_PARAMS):
            self._call(self._client.log_batch, run_id, params=[Param(key, value) for key, value in batch])

    def log_points(self, run_id: str, points: Iterable[Point]) -> None:
        """Adds points in order."""
        for batch in _batches(points, _MAX_METRICS):
            self._call(self._log_batch, run_id, batch)

    def log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Sets tags."""
        for batch in _batches(tags.items(), _MAX_PARAMS):
            self._call(self._client.log_batch, run_id, tags=[RunTag(key, value) for key, value in batch])

    def log_data(self, run_id: str, data: Sequence[LoggedData]) -> None:
        """Adds the run's data sets."""
        inputs = [
            DatasetInput(
                Dataset(
                    name=item.name,
                    digest=item.digest,
                    source_type="evenload",
                    source=item.source,
                    schema=None,
                    profile=item.profile,
                ),
                tags=[InputTag("mlflow.data.context", item.context)],
            )
            for item in data
        ]
        self._call(self._client.log_inputs, run_id, datasets=inputs)

    def log_model(self, experiment_id: str, run_id: str, model: TrainedModel) -> None:
        """Adds the model that the run's newest checkpoint holds, as an output of the run."""
        there = self._call(
            self._client.search_logged_models,
            [experiment_id],
            filter_string=f"source_run_id = '{run_id}' AND name = '{model.name}'",
            max_results=1,
        )
        made = (
            there[0]
            if there
            else self._call(
                self._client.create_logged_model,
                experiment_id,
                name=model.name,
                source_run_id=run_id,
                tags=dict(model.tags),
                params=dict(model.params),
                model_type="evenload checkpoint",
            )
        )
        # MLflow refuses an output that is there already.
        outputs = self._call(self._client.get_run, run_id).outputs
        if outputs is None or all(output.model_id != made.model_id for output in outputs.model_outputs):
            self._call(self._client.log_outputs, run_id, [LoggedModelOutput(made.model_id, model.step)])
        self._call(self._client.finalize_logged_model, made.model_id, "READY")

    def log_artifacts(self, run_id: str, folder: Path) -> None:
        """Uploads the files of a folder, each in place of one of its name."""
        for path in sorted(folder.iterdir()):
            self._call(self._client.log_artifact, run_id, str(path))

    def delete_others(self, experiment_id: str, run_id: str, *, key: str, value: str) -> None:
        """Deletes runs with this tag but `run_id`: a request that was given up may still have created one later."""
        there = self._call(
            self._client.search_runs, [experiment_id], filter_string=f"tags.`{key}` = '{value}'", max_results=100
        )
        for run in there:
            if run.info.run_id != run_id:
                self._call(self._client.delete_run, run.info.run_id)

    def end_run(self, run_id: str, *, status: str, end_ms: int | None) -> None:
        """Ends a run."""
        self._call(self._client.set_terminated, run_id, status=status, end_time=end_ms)

    def _log_batch(self, run_id: str, batch: Sequence[Point]) -> None:
        """What MLflow's own client sends, without a message object for each point and its JSON made twice: that takes
        about as long as the server takes to keep the points, and the server waits for it."""
        if not self.uri.startswith(("http://", "https://")):
            metrics = [Metric(point.key, point.value, point.timestamp_ms, point.step) for point in batch]
            self._client.log_batch(run_id, metrics=metrics)
            return
        body = {
            "run_id": run_id,
            "metrics": [
                {"key": key, "value": _json_number(value), "timestamp": timestamp_ms, "step": step}
                for key, value, timestamp_ms, step in batch
            ],
        }
        answer = http_request(get_default_host_creds(self.uri), _LOG_BATCH, "POST", json=body)
        verify_rest_response(answer, _LOG_BATCH)

    def _call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        try:
            return function(*arguments, **options)
        except mlflow.exceptions.MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise RunDeleted(str(error)) from error
            text = str(error).splitlines()[0][:300]
            if error.error_code == ErrorCode.Name(INVALID_PARAMETER_VALUE):
                raise Refused(text) from error
            raise TrackingUnavailable(f"{self.uri}: {text}") from error
        except (requests.RequestException, OSError) as error:
            raise TrackingUnavailable(f"{self.uri}: {error}") from error


def _json_number(value: float) -> float | str:
    """As the JSON of protocol buffers has it: what is not finite is a word."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _batches(items: Iterable[T], size: int) -> Iterable[list[T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
