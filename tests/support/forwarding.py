"""One small trial to forward, and what MLflow has of it."""

import contextlib
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from orchestrator.execution.conductor import Next
from orchestrator.store.records import TrialRecord
from orchestrator.store.session import Database
from orchestrator.tracking.chunks import columns
from orchestrator.tracking.forwarder import Forwarder
from tests.support.services import MlflowServer
from tests.support.sweeps import sweep_document, take_over
from tests.support.training import STEP_TOKENS
from trainer import worker
from trainer.config.run import RunReport, RunRequest
from trainer.metrics.catalog import PROBE_SCALARS, SCALARS

DOCUMENT = sweep_document(
    num_trials=1,
    num_steps=24,
    scheduler={"kind": "none"},
    base={
        "loop": {"checkpoint_every_tokens": 8 * STEP_TOKENS, "evaluate_every_tokens": 8 * STEP_TOKENS},
    },
)
"""24 steps, few enough that all of them go to MLflow, with an evaluation and a checkpoint every 8."""


class Killed(Exception):
    """The trial's process was killed here."""


def train(database: Database, root: Path, experiment_id: str, *, kill_after_step: int | None = None) -> None:
    """Trains the experiment's trial in this process: to the end, or until a checkpoint of `kill_after_step`."""
    conductor = take_over(database, root, experiment_id)
    request = conductor.next_run()
    assert isinstance(request, RunRequest)

    def take(report: RunReport) -> None:
        conductor.report(request.run_id, report)
        if kill_after_step is not None and report.checkpoint is not None and report.step >= kill_after_step:
            raise Killed

    if kill_after_step is None:
        worker.run(request, take)
        assert conductor.next_run() is Next.FINISHED
        conductor.settle()
    else:
        with pytest.raises(Killed):
            worker.run(request, take)


def the_trial(database: Database, experiment_id: str) -> TrialRecord:
    """The experiment's only trial."""
    with database.read() as work:
        (trial,) = work.trials.history(experiment_id)
    return trial


def mlflow_runs(url: str, database: Database, experiment_id: str) -> list[Any]:
    """The experiment's MLflow runs without the parent, deleted ones left out."""
    return [run for run in _all_runs(url, database, experiment_id) if "evenload.trial_id" in run.data.tags]


def mlflow_parents(url: str, database: Database, experiment_id: str) -> list[Any]:
    """The experiment's parent runs: one."""
    return [run for run in _all_runs(url, database, experiment_id) if "evenload.parent_of" in run.data.tags]


def history(url: str, run_id: str, key: str) -> list[tuple[int, float]]:
    """Step and value of every point of a metric."""
    points = MlflowClient(tracking_uri=url).get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in points)


def forward_all(database: Database, root: Path, url: str) -> None:
    """Forwards until nothing is left."""
    forwarder = Forwarder(database, root, url)
    forwarder.reopen_parents()
    assert forwarder.round() == 0


def check_everything_is_there_once(mlflow: MlflowServer, database: Database, root: Path, experiment_id: str) -> None:
    """Compares an ended trial of DOCUMENT with its one run in MLflow, point by point, and looks for a second one."""
    trial = the_trial(database, experiment_id)
    (run,) = mlflow_runs(mlflow.url, database, experiment_id)
    (parent,) = mlflow_parents(mlflow.url, database, experiment_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (run.info.status, run.info.end_time) == ("FINISHED", trial.finished_at_ms)
    assert parent.info.status == "FINISHED"
    with contextlib.closing(sqlite3.connect(mlflow.database)) as kept:
        rows = kept.execute("SELECT key, step, value FROM metrics WHERE run_uuid = ?", [run.info.run_id]).fetchall()
    points: dict[str, list[tuple[int, float]]] = {}
    for key, step, value in sorted(rows):
        points.setdefault(key, []).append((step, value))
    with database.read() as work:
        folders = [root / ours.folder for ours in work.runs.of_trial(trial.id)]
    table = columns(folders, "scalars", SCALARS)
    assert table["step"].tolist() == list(range(1, 25)), "few enough that MLflow has no sample but all of them"
    for key in SCALARS:
        assert points[key] == list(zip(table["step"].tolist(), table[key].tolist(), strict=True)), key
    for key, found in points.items():
        steps = [step for step, _ in found]
        assert len(steps) == len(set(steps)), f"a step of {key} is there twice"
        if key.startswith("router/"):
            assert steps == list(range(1, 25)), key
        if key.startswith("eval/"):
            assert steps == [0, 8, 16, 24], key
    probes = columns(folders, "probes", PROBE_SCALARS)
    for name in PROBE_SCALARS:
        by_step: dict[int, list[float]] = {}
        for step, value in zip(probes["step"].tolist(), probes[name].tolist(), strict=True):
            # The first evaluation has none before it that it could differ from.
            if not math.isnan(value):
                by_step.setdefault(step, []).append(value)
        assert by_step.keys() >= {8, 16, 24}, name
        for word, of in (("min", min), ("max", max)):
            assert points[f"{name}/{word}"] == [(step, of(values)) for step, values in by_step.items()], name
    assert [step for step, _ in points["probe/saturation/mean"]] == [0, 8, 16, 24]
    groups = {"train", "optimizer", "throughput", "router", "probe", "eval", "system", "summary", "objective"}
    assert {key.partition("/")[0] for key in points} == groups
    assert len(run.inputs.dataset_inputs) == 2
    assert len(run.outputs.model_outputs) == 1


def _all_runs(url: str, database: Database, experiment_id: str) -> list[Any]:
    with database.read() as work:
        mlflow_experiment_id = work.experiments.get(experiment_id).mlflow_experiment_id
    assert mlflow_experiment_id is not None
    client = MlflowClient(tracking_uri=url)
    return list(client.search_runs([mlflow_experiment_id], run_view_type=ViewType.ACTIVE_ONLY))
