"""The forwarder: brings trials to MLflow. It can be behind, never wrong.

`python -m orchestrator.tracking.forwarder`. The only place that imports mlflow. MLflow keeps one row per (run, key,
timestamp, step, value), so sending a point again changes nothing; what was acknowledged is noted in the `tracking`
table afterwards, so a crash at any point, of either side, leads to a resend and to no duplicate. Steps are sent once
they are final: up to the trial's last committed checkpoint while it lives, all of them when it has ended. A retried
trial goes on in the same MLflow run.
"""

import itertools
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import mlflow.exceptions
import requests
from mlflow.entities import Metric, Param, RunTag
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking import MlflowClient

from orchestrator import home as layout
from orchestrator.errors import StoreUnavailable, TrackingUnavailable
from orchestrator.states import is_terminal
from orchestrator.store.records import ExperimentRecord, TrackingRecord, TrialRecord
from orchestrator.store.session import Database, database_url, open_database
from orchestrator.tracking import record, server
from orchestrator.tracking.record import Point
from orchestrator.tracking.series import RunFolder, Source
from trainer.config import TrainConfig

logger = logging.getLogger(__name__)

T = TypeVar("T")

_INTERVAL_S = 2.0
_MAX_BACKOFF_S = 60.0
_MAX_METRICS = 1000
_MAX_PARAMS = 100
_NICENESS = 10
_HTTP = {
    # MLflow's own retries would hide an outage for minutes; ours outlast any.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


class Forwarder:
    """Forwards to one MLflow server.

    Args:
        database: of the installation.
        root: the home folder.
        uri: of the server.
    """

    def __init__(self, database: Database, root: Path, uri: str) -> None:
        # MLflow's client takes these from nowhere else.
        os.environ.update(_HTTP)
        self.uri = uri
        self._database = database
        self._root = root
        self._client = MlflowClient(tracking_uri=uri)
        self._parents: dict[str, str] = {}

    def round(self) -> int:
        """Forwards what has become final since the last round; returns how many trials are not wholly forwarded yet.

        Raises:
            TrackingUnavailable: MLflow did not answer; what was acknowledged before is noted.
            StoreUnavailable: our database did not answer.
        """
        with self._database.read() as work:
            trials = work.tracking.open_trials()
        remaining = sum(not self._forward(trial) for trial in trials)
        self._close_parents()
        return remaining

    def _forward(self, trial: TrialRecord) -> bool:
        with self._database.read() as work:
            experiment = work.experiments.get(trial.experiment_id)
            runs = work.runs.of_trial(trial.id)
            checkpoint = work.checkpoints.newest(trial.id)
            tracking = work.tracking.get(trial.id)
        source = Source(id=trial.id, runs=tuple(RunFolder(run.id, self._root / run.folder) for run in runs))
        environment = next((run.environment for run in reversed(runs) if run.environment is not None), None)
        tags = record.tags(experiment, trial, environment)
        try:
            run_id = self._ensure_run(experiment, trial, tags, tracking)
            positions = dict(tracking.positions) if tracking is not None else {}
            if "params" not in positions:
                self._log_params(run_id, record.params(trial))
                positions["params"] = True
                self._save(trial, run_id, positions)
            ended = is_terminal(trial.state)
            until = None if ended else (checkpoint.step if checkpoint is not None else -1)
            after = positions.get("step", -1)
            config = TrainConfig.model_validate(trial.config)
            if until is None or until > after:
                self._log_points(
                    run_id,
                    itertools.chain(
                        record.step_points(source, config, after=after, until=until),
                        record.evaluation_points(source, after=after, until=until),
                    ),
                )
                if until is not None:
                    positions["step"] = until
                    self._save(trial, run_id, positions)
            if ended:
                self._finish(run_id, trial, source, tags)
                self._save(trial, run_id, positions, finished=True)
            return ended
        except _Deleted:
            logger.warning("the MLflow run of trial %s was deleted; it is not forwarded again", trial.id)
            self._save(trial, None, {}, finished=True)
            return True

    def _finish(self, run_id: str, trial: TrialRecord, source: Source, tags: dict[str, str]) -> None:
        self._log_points(run_id, record.summary_points(trial))
        with tempfile.TemporaryDirectory(prefix="evenload-artifacts-") as folder:
            for path in record.write_artifacts(source, trial, Path(folder)):
                self._call(self._client.log_artifact, run_id, str(path))
        self._call(self._client.log_batch, run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        self._call(
            self._client.set_terminated, run_id, status=record.status(trial.state), end_time=trial.finished_at_ms
        )

    def _ensure_run(
        self,
        experiment: ExperimentRecord,
        trial: TrialRecord,
        tags: dict[str, str],
        tracking: TrackingRecord | None,
    ) -> str:
        if tracking is not None and tracking.mlflow_run_id is not None:
            return tracking.mlflow_run_id
        mlflow_experiment_id = self._ensure_experiment(experiment)
        parent = self._ensure_parent(experiment, mlflow_experiment_id)
        run_id = self._find_or_create(
            mlflow_experiment_id,
            key="evenload.trial_id",
            value=trial.id,
            name=record.run_name(trial),
            start_ms=trial.started_at_ms or trial.created_at_ms,
            tags={**tags, "mlflow.parentRunId": parent},
        )
        self._save(trial, run_id, {})
        return run_id

    def _ensure_experiment(self, experiment: ExperimentRecord) -> str:
        if experiment.mlflow_experiment_id is not None:
            return experiment.mlflow_experiment_id
        # The id makes the name unique, and creating it twice impossible.
        name = f"{experiment.name} ({experiment.id})"
        there = self._call(self._client.get_experiment_by_name, name)
        found: str = there.experiment_id if there is not None else self._call(self._client.create_experiment, name)
        self._database.run(lambda work: work.experiments.set_mlflow_experiment(experiment.id, found))
        return found

    def _ensure_parent(self, experiment: ExperimentRecord, mlflow_experiment_id: str) -> str:
        if experiment.id not in self._parents:
            self._parents[experiment.id] = self._find_or_create(
                mlflow_experiment_id,
                key="evenload.parent_of",
                value=experiment.id,
                name=experiment.name,
                start_ms=experiment.created_at_ms,
                tags={"evenload.experiment_id": experiment.id, "evenload.kind": "experiment"},
            )
        return self._parents[experiment.id]

    def _find_or_create(
        self, mlflow_experiment_id: str, *, key: str, value: str, name: str, start_ms: int, tags: dict[str, str]
    ) -> str:
        """MLflow gives out run ids itself, so a run that a lost answer left behind is found by its tag."""
        there = self._call(
            self._client.search_runs,
            [mlflow_experiment_id],
            filter_string=f"tags.`{key}` = '{value}'",
            max_results=1,
        )
        if there:
            return there[0].info.run_id
        run = self._call(
            self._client.create_run,
            mlflow_experiment_id,
            start_time=start_ms,
            tags={key: value, **tags},
            run_name=name,
        )
        return run.info.run_id

    def _close_parents(self) -> None:
        """Ends the parent run of every experiment that is over and wholly forwarded."""
        with self._database.read() as work:
            open_experiments = {trial.experiment_id for trial in work.tracking.open_trials()}
            experiments = [work.experiments.get(experiment_id) for experiment_id in self._parents]
        for experiment in experiments:
            if is_terminal(experiment.state) and experiment.id not in open_experiments:
                run_id = self._parents[experiment.id]
                tags = [RunTag("evenload.state", experiment.state.value), RunTag("evenload.reason", experiment.reason)]
                self._call(self._client.log_batch, run_id, tags=tags)
                status = {"completed": "FINISHED", "cancelled": "KILLED"}.get(experiment.state.value, "FAILED")
                self._call(self._client.set_terminated, run_id, status=status, end_time=experiment.finished_at_ms)
                del self._parents[experiment.id]

    def reopen_parents(self) -> None:
        """Finds the parent runs that an earlier forwarder left open."""
        with self._database.read() as work:
            cursor, experiments = None, []
            while True:
                page = work.experiments.list(limit=100, cursor=cursor)
                experiments += [item for item in page.items if item.mlflow_experiment_id is not None]
                if (cursor := page.next_cursor) is None:
                    break
        for experiment in experiments:
            there = self._call(
                self._client.search_runs,
                [experiment.mlflow_experiment_id],
                filter_string=f"tags.`evenload.parent_of` = '{experiment.id}' and attributes.status = 'RUNNING'",
                max_results=1,
            )
            if there:
                self._parents[experiment.id] = there[0].info.run_id

    def _log_params(self, run_id: str, values: dict[str, str]) -> None:
        for batch in _batches(values.items(), _MAX_PARAMS):
            self._call(self._client.log_batch, run_id, params=[Param(key, value) for key, value in batch])

    def _log_points(self, run_id: str, points: Iterable[Point]) -> None:
        for batch in _batches(points, _MAX_METRICS):
            metrics = [Metric(point.key, point.value, point.timestamp_ms, point.step) for point in batch]
            self._call(self._client.log_batch, run_id, metrics=metrics)

    def _save(
        self, trial: TrialRecord, run_id: str | None, positions: dict[str, Any], *, finished: bool = False
    ) -> None:
        self._database.run(
            lambda work: work.tracking.save(trial.id, mlflow_run_id=run_id, positions=positions, finished=finished)
        )

    def _call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        try:
            return function(*arguments, **options)
        except mlflow.exceptions.MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise _Deleted(str(error)) from error
            raise TrackingUnavailable(f"{self.uri}: {str(error).splitlines()[0][:300]}") from error
        except (requests.RequestException, OSError) as error:
            raise TrackingUnavailable(f"{self.uri}: {error}") from error


class _Deleted(Exception):
    """Somebody deleted the run or experiment in MLflow."""


def _batches(items: Iterable[T], size: int) -> Iterable[list[T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def tracking_uri(database: Database) -> str | None:
    """Where MLflow is: the named server, else the one of this installation once it is ready; None if there is none."""
    external = server.external_uri()
    if external is not None:
        return external
    with database.read() as work:
        service = work.services.get("mlflow")
    return service.url if service is not None and service.state == "ready" else None


def run(root: Path, stop: threading.Event) -> None:
    """Forwards until `stop` is set. Waits for as long as MLflow is away, longer each time."""
    database = open_database(database_url(root))
    forwarder: Forwarder | None = None
    pause_s = _INTERVAL_S
    while not stop.is_set():
        try:
            uri = tracking_uri(database)
            if uri is None:
                forwarder = None
            else:
                if forwarder is None or forwarder.uri != uri:
                    forwarder = Forwarder(database, root, uri)
                    forwarder.reopen_parents()
                forwarder.round()
            pause_s = _INTERVAL_S
        except (TrackingUnavailable, StoreUnavailable) as error:
            forwarder = None
            pause_s = min(2 * pause_s, _MAX_BACKOFF_S)
            logger.warning("trying again in %.0f s: %s", pause_s, error)
        stop.wait(pause_s)


def main() -> None:
    """Runs until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # Training goes first where they share a processor.
    os.nice(_NICENESS)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    run(layout.home(), stop)


if __name__ == "__main__":
    main()
