"""The forwarder: brings trials to MLflow. It can be behind, never wrong.

`python -m orchestrator.tracking.forwarder`. MLflow keeps one row per (run, key, timestamp, step, value), so sending a
point again changes nothing; what was acknowledged is noted in the `tracking` table afterwards, so a crash at any point,
of either side, leads to a resend and to no duplicate. Steps are sent once they are final: up to the trial's last
committed checkpoint while it lives, all of them when it has ended. A retried trial goes on in the same MLflow run.

TensorBoard's files are written on the way, where an experiment asks for them.
"""

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator import home as layout
from orchestrator.errors import StoreUnavailable, TrackingUnavailable
from orchestrator.spec import Tracking
from orchestrator.states import is_terminal
from orchestrator.store.records import CheckpointRecord, ExperimentRecord, TrackingRecord, TrialRecord
from orchestrator.store.session import Database, database_url, open_database
from orchestrator.tracking import record, server
from orchestrator.tracking.artifacts import write_artifacts, write_spec
from orchestrator.tracking.remote import TIMEOUT_S, Refused, Remote, RunDeleted
from orchestrator.tracking.series import RunFolder, Source, last_step
from orchestrator.tracking.tensorboard import EventFiles
from trainer.config import TrainConfig

logger = logging.getLogger(__name__)

_INTERVAL_S = 2.0
_MAX_BACKOFF_S = 60.0
_NICENESS = 10
_STRETCH_STEPS = 1000
"""Most steps that are forwarded before it is noted; with every step in MLflow about 130,000 points."""


class Forwarder:
    """Forwards to one MLflow server.

    Args:
        database: of the installation.
        root: the home folder.
        uri: of the server.
        timeout_s: how long one request may take.
    """

    def __init__(self, database: Database, root: Path, uri: str, *, timeout_s: int = TIMEOUT_S) -> None:
        self.uri = uri
        self._database = database
        self._root = root
        self._remote = Remote(uri, timeout_s=timeout_s)
        self._parents: dict[str, str] = {}
        self._refused: set[str] = set()

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
        """Returns whether the trial is wholly forwarded."""
        try:
            return self._forward_trial(trial)
        except RunDeleted:
            logger.warning("the MLflow run of trial %s was deleted; it is not forwarded again", trial.id)
            self._save(trial, None, {}, finished=True)
            return True
        except Refused as error:
            # One trial that MLflow will not have must not hold up the others. It is tried again every round.
            if trial.id not in self._refused:
                logger.warning("MLflow refuses trial %s: %s", trial.id, error)
            self._refused.add(trial.id)
            return False

    def _forward_trial(self, trial: TrialRecord) -> bool:
        with self._database.read() as work:
            experiment = work.experiments.get(trial.experiment_id)
            runs = work.runs.of_trial(trial.id)
            checkpoint = work.checkpoints.newest(trial.id)
            tracking = work.tracking.get(trial.id)
        source = Source(id=trial.id, runs=tuple(RunFolder(run.id, self._root / run.folder) for run in runs))
        environment = next((run.environment for run in reversed(runs) if run.environment is not None), None)
        tags = record.tags(experiment, trial, environment, num_runs=len(runs))
        config = TrainConfig.model_validate(trial.config)
        mlflow_experiment_id = self._ensure_experiment(experiment)
        run_id = self._ensure_run(experiment, mlflow_experiment_id, trial, tags, tracking)
        positions = dict(tracking.positions) if tracking is not None else {}
        if "params" not in positions:
            self._remote.log_params(run_id, record.params(trial))
            positions["params"] = True
            self._save(trial, run_id, positions)
        if "data" not in positions and environment is not None:
            self._remote.log_data(run_id, record.data(config, environment))
            positions["data"] = True
            self._save(trial, run_id, positions)
        tracking_spec = Tracking.model_validate(experiment.spec.get("tracking", {}))
        ended = is_terminal(trial.state)
        for after, until in _stretches(positions, source, checkpoint, ended=ended):
            points = record.points(source, config, tracking_spec, after=after, until=until)
            self._remote.log_points(run_id, points)
            positions |= {"whole": True} if until is None else {"step": until}
            if until is None or (checkpoint is not None and until == checkpoint.step):
                self._remote.log_tags(run_id, tags)
            self._save(trial, run_id, positions)
        if ended:
            self._finish(mlflow_experiment_id, run_id, experiment, trial, source, checkpoint)
            self._save(trial, run_id, positions, finished=True)
        return ended

    def _finish(
        self,
        mlflow_experiment_id: str,
        run_id: str,
        experiment: ExperimentRecord,
        trial: TrialRecord,
        source: Source,
        checkpoint: CheckpointRecord | None,
    ) -> None:
        self._remote.log_points(run_id, record.summary_points(trial))
        with tempfile.TemporaryDirectory(prefix="evenload-artifacts-") as folder:
            write_artifacts(source, experiment, trial, Path(folder))
            self._remote.log_artifacts(run_id, Path(folder))
        if checkpoint is not None:
            self._remote.log_model(mlflow_experiment_id, run_id, record.trained_model(trial, checkpoint))
        self._remote.delete_others(mlflow_experiment_id, run_id, key="evenload.trial_id", value=trial.id)
        self._remote.end_run(run_id, status=record.status(trial.state), end_ms=trial.finished_at_ms)

    def _ensure_run(
        self,
        experiment: ExperimentRecord,
        mlflow_experiment_id: str,
        trial: TrialRecord,
        tags: dict[str, str],
        tracking: TrackingRecord | None,
    ) -> str:
        if tracking is not None and tracking.mlflow_run_id is not None:
            return tracking.mlflow_run_id
        run_id = self._remote.run(
            mlflow_experiment_id,
            key="evenload.trial_id",
            value=trial.id,
            name=record.run_name(trial),
            start_ms=trial.started_at_ms or trial.created_at_ms,
            tags={**tags, "mlflow.parentRunId": self._ensure_parent(experiment, mlflow_experiment_id)},
        )
        self._save(trial, run_id, {})
        return run_id

    def _ensure_experiment(self, experiment: ExperimentRecord) -> str:
        if experiment.mlflow_experiment_id is not None:
            return experiment.mlflow_experiment_id
        # The id makes the name unique, and creating it twice impossible.
        found = self._remote.experiment(f"{experiment.name} ({experiment.id})")
        self._database.run(lambda work: work.experiments.set_mlflow_experiment(experiment.id, found))
        return found

    def _ensure_parent(self, experiment: ExperimentRecord, mlflow_experiment_id: str) -> str:
        if experiment.id not in self._parents:
            self._parents[experiment.id] = self._remote.run(
                mlflow_experiment_id,
                key="evenload.parent_of",
                value=experiment.id,
                name=experiment.name,
                start_ms=experiment.created_at_ms,
                tags=record.parent_tags(experiment),
            )
        return self._parents[experiment.id]

    def _close_parents(self) -> None:
        """Ends the parent run of every experiment that is over and wholly forwarded."""
        with self._database.read() as work:
            open_experiments = {trial.experiment_id for trial in work.tracking.open_trials()}
            experiments = [work.experiments.get(experiment_id) for experiment_id in self._parents]
        for experiment in experiments:
            if is_terminal(experiment.state) and experiment.id not in open_experiments:
                run_id = self._parents[experiment.id]
                status = {"completed": "FINISHED", "cancelled": "KILLED"}.get(experiment.state.value, "FAILED")
                try:
                    with tempfile.TemporaryDirectory(prefix="evenload-artifacts-") as folder:
                        write_spec(experiment, Path(folder))
                        self._remote.log_artifacts(run_id, Path(folder))
                    self._remote.log_tags(run_id, record.parent_tags(experiment))
                    self._remote.end_run(run_id, status=status, end_ms=experiment.finished_at_ms)
                except RunDeleted:
                    logger.warning("the MLflow run of experiment %s was deleted", experiment.id)
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
            assert experiment.mlflow_experiment_id is not None
            there = self._remote.find_run(
                experiment.mlflow_experiment_id, key="evenload.parent_of", value=experiment.id, only_running=True
            )
            if there is not None:
                self._parents[experiment.id] = there

    def _save(
        self, trial: TrialRecord, run_id: str | None, positions: dict[str, Any], *, finished: bool = False
    ) -> None:
        self._database.run(
            lambda work: work.tracking.save(trial.id, mlflow_run_id=run_id, positions=positions, finished=finished)
        )


def _stretches(
    positions: dict[str, Any], source: Source, checkpoint: CheckpointRecord | None, *, ended: bool
) -> Iterator[tuple[int, int | None]]:
    """What is final and not acknowledged yet, as ranges `after < step <= until`; an ended trial's last one is open.

    A long trial goes in pieces, each noted when it is there: what an outage interrupts is sent again only from the last
    of them on.
    """
    if "whole" in positions:
        return
    after = int(positions.get("step", -1))
    last = last_step(source) if ended else (checkpoint.step if checkpoint is not None else -1)
    while last - after > _STRETCH_STEPS:
        yield after, after + _STRETCH_STEPS
        after += _STRETCH_STEPS
    if ended:
        yield after, None
    elif last > after:
        yield after, last


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
    event_files = EventFiles(database, root)
    forwarder: Forwarder | None = None
    pause_s = _INTERVAL_S
    while not stop.is_set():
        try:
            event_files.round()
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
