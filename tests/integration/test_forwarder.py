"""The forwarder against a real MLflow server: all points once, whatever goes down in between."""

import contextlib
import json
import math
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow.tracking
import pytest

from orchestrator.store.session import Database, database_url, open_database
from orchestrator.tracking.chunks import columns
from orchestrator.tracking.forwarder import Forwarder
from orchestrator.tracking.record import Point
from orchestrator.tracking.remote import Remote
from tests.support.forwarding import DOCUMENT, forward_all, history, mlflow_runs, the_trial, train
from tests.support.services import MlflowServer, fresh_home
from tests.support.sweeps import submit
from trainer.bundle import unpack_bundle
from trainer.recorded_run import open_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fresh_home(tmp_path / "home")


@pytest.fixture
def database(root: Path) -> Iterator[Database]:
    opened = open_database(database_url(root))
    yield opened
    opened.close()


def test_ended_trial_is_wholly_in_mlflow(mlflow_url: str, database: Database, root: Path, tmp_path: Path) -> None:
    experiment_id = submit(database, DOCUMENT)
    train(database, root, experiment_id)
    trial = the_trial(database, experiment_id)
    with database.read() as work:
        (ours,) = work.runs.of_trial(trial.id)
    spike = {"step": 5, "metric": "train/loss", "value": 9.0}
    (root / ours.folder / "spikes.jsonl").write_text(json.dumps(spike) + "\n")
    forward_all(database, root, mlflow_url)

    (run,) = mlflow_runs(mlflow_url, database, experiment_id)
    assert run.info.status == "FINISHED"
    assert run.info.end_time == trial.finished_at_ms
    assert run.info.run_name == f"trial 0 (lr={trial.params['optimizer.lr']:.3g})"
    assert run.data.params["optimizer.lr"] == str(trial.params["optimizer.lr"])
    assert run.data.params["model.moe.balancing.0.kind"] == "load_balancing_loss"
    assert run.data.tags["evenload.state"] == "completed"
    assert run.data.metrics["objective"] == trial.objective
    table = columns([root / ours.folder], "scalars", ["train/loss", "time_ms"])
    expected = list(zip(table["step"].tolist(), table["train/loss"].tolist(), strict=True))
    assert history(mlflow_url, run.info.run_id, "train/loss") == expected
    client = mlflow.tracking.MlflowClient(tracking_uri=mlflow_url)
    times = sorted(point.timestamp for point in client.get_metric_history(run.info.run_id, "train/loss"))
    assert times == table["time_ms"].tolist(), "the original timestamps"
    assert [step for step, _ in history(mlflow_url, run.info.run_id, "eval/bits_per_byte/all")] == [0, 8, 16, 24]
    low, mean, high = (
        dict(history(mlflow_url, run.info.run_id, f"router/max_violation/{word}")) for word in ("min", "mean", "max")
    )
    assert all(low[step] <= mean[step] <= high[step] for step in range(1, 25))
    assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} >= {
        "bundle.tar.gz",
        "config.json",
        "environment.json",
        "packages.txt",
        "spikes.json",
        "router_loads.parquet",
        "router_loads.png",
        "router_load_histogram.png",
    }
    found = Path(client.download_artifacts(run.info.run_id, "spikes.json", str(tmp_path)))
    assert json.loads(found.read_text()) == [{"run_id": ours.id, **spike}]
    (tmp_path / "unpacked").mkdir()
    bundle = Path(client.download_artifacts(run.info.run_id, "bundle.tar.gz", str(tmp_path)))
    unpacked = unpack_bundle(bundle, tmp_path / "unpacked")
    assert open_run(unpacked).config.fingerprint() == trial.config_fingerprint
    assert json.loads((unpacked / "spec.json").read_text())["name"] == DOCUMENT["name"]
    used = history(mlflow_url, run.info.run_id, "system/process_memory_usage_megabytes")
    assert used
    assert all(value > 0 for _, value in used)
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert (parent.info.status, parent.data.tags["evenload.experiment_id"]) == ("FINISHED", experiment_id)


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # of what MLflow does to its database
def test_points_that_are_no_numbers_and_a_database_without_a_server(mlflow_server: MlflowServer) -> None:
    """MLflow keeps the largest double for what is infinite. Its own client is used where there is no HTTP."""
    values = {"nan": math.nan, "high": math.inf, "low": -math.inf, "tiny": 5e-324, "pi": math.pi}
    points = [Point(f"x/{name}", value, 1_700_000_000_123, 2**40) for name, value in values.items()]
    over_http = Remote(mlflow_server.url)
    experiment_id = over_http.experiment("values")
    kept = []
    for remote in (over_http, Remote(f"sqlite:///{mlflow_server.database}")):
        name = remote.uri.partition(":")[0]
        run_id = remote.run(experiment_id, key="k", value=name, name=name, start_ms=0, tags={})
        for _ in range(2):
            remote.log_points(run_id, points)
        with contextlib.closing(sqlite3.connect(mlflow_server.database)) as database:
            question = "SELECT key, value, is_nan, timestamp, step FROM metrics WHERE run_uuid = ? ORDER BY key"
            kept.append(database.execute(question, [run_id]).fetchall())
    largest = sys.float_info.max
    at = (1_700_000_000_123, 2**40)
    assert (
        kept[0]
        == kept[1]
        == [
            ("x/high", largest, 0, *at),
            ("x/low", -largest, 0, *at),
            ("x/nan", 0.0, 1, *at),
            ("x/pi", math.pi, 0, *at),
            ("x/tiny", 5e-324, 0, *at),
        ]
    )


def test_lineage_is_in_mlflows_own_terms(mlflow_url: str, database: Database, root: Path) -> None:
    experiment_id = submit(database, DOCUMENT)
    train(database, root, experiment_id)
    forward_all(database, root, mlflow_url)

    trial = the_trial(database, experiment_id)
    (run,) = mlflow_runs(mlflow_url, database, experiment_id)
    with database.read() as work:
        (ours,) = work.runs.of_trial(trial.id)
        checkpoint = work.checkpoints.newest(trial.id)
    assert ours.environment is not None
    assert checkpoint is not None
    read = {item.tags[0].value: item.dataset for item in run.inputs.dataset_inputs}
    assert {context: data.name for context, data in read.items()} == {
        "training": "legal + speeches",
        "evaluation": "held-out legal + speeches",
    }
    assert ours.environment["data_fingerprint"].startswith(read["training"].digest)
    assert json.loads(read["training"].source) == {"corpora": {"legal": 0.5, "speeches": 0.5}}
    assert run.data.tags["evenload.data_fingerprint"] == ours.environment["data_fingerprint"]
    # None outside of a checkout, where there is no tag either.
    assert run.data.tags.get("mlflow.source.git.commit") == ours.environment["git_commit"]
    if ours.environment["git_commit"] is not None:
        assert run.data.tags["evenload.git_dirty"] == str(ours.environment["git_dirty"])
    assert run.data.tags["search.optimizer.lr"] == str(trial.params["optimizer.lr"])

    (output,) = run.outputs.model_outputs
    model = mlflow.tracking.MlflowClient(tracking_uri=mlflow_url).get_logged_model(output.model_id)
    assert (output.step, model.status.value, model.source_run_id) == (24, "READY", run.info.run_id)
    assert model.tags["evenload.manifest_sha256"] == checkpoint.manifest_sha256
    assert model.params["moe.num_experts"] == "4"


def test_forwarding_again_after_a_crash_adds_nothing(mlflow_url: str, database: Database, root: Path) -> None:
    experiment_id = submit(database, DOCUMENT)
    train(database, root, experiment_id)
    forward_all(database, root, mlflow_url)
    (run,) = mlflow_runs(mlflow_url, database, experiment_id)
    before = {key: history(mlflow_url, run.info.run_id, key) for key in run.data.metrics}
    trial = the_trial(database, experiment_id)

    # Killed before anything that was acknowledged could be noted.
    with database.transaction() as work:
        work.tracking.save(trial.id, mlflow_run_id=None, positions={}, finished=False)
    forward_all(database, root, mlflow_url)

    (again,) = mlflow_runs(mlflow_url, database, experiment_id)
    assert again.info.run_id == run.info.run_id
    assert {key: history(mlflow_url, run.info.run_id, key) for key in again.data.metrics} == before
    assert len(again.inputs.dataset_inputs) == 2
    assert len(again.outputs.model_outputs) == 1


def test_live_trial_is_forwarded_up_to_its_checkpoint_and_its_retry_goes_on_in_the_same_run(
    mlflow_url: str, database: Database, root: Path
) -> None:
    experiment_id = submit(database, DOCUMENT)
    train(database, root, experiment_id, kill_after_step=16)
    forwarder = Forwarder(database, root, mlflow_url)
    assert forwarder.round() == 1
    (run,) = mlflow_runs(mlflow_url, database, experiment_id)
    assert run.info.status == "RUNNING"
    assert [step for step, _ in history(mlflow_url, run.info.run_id, "train/loss")] == list(range(1, 17))

    train(database, root, experiment_id)
    assert forwarder.round() == 0
    (again,) = mlflow_runs(mlflow_url, database, experiment_id)
    assert again.info.run_id == run.info.run_id
    assert again.info.status == "FINISHED"
    assert [step for step, _ in history(mlflow_url, run.info.run_id, "train/loss")] == list(range(1, 25))
    assert [step for step, _ in history(mlflow_url, run.info.run_id, "eval/loss/all")] == [0, 8, 16, 24]


def test_a_second_run_that_a_late_request_made_is_deleted(mlflow_url: str, database: Database, root: Path) -> None:
    experiment_id = submit(database, DOCUMENT)
    train(database, root, experiment_id, kill_after_step=8)
    forwarder = Forwarder(database, root, mlflow_url)
    forwarder.round()
    (run,) = mlflow_runs(mlflow_url, database, experiment_id)
    client = mlflow.tracking.MlflowClient(tracking_uri=mlflow_url)
    tags = {key: run.data.tags[key] for key in ("evenload.trial_id", "mlflow.parentRunId")}
    client.create_run(run.info.experiment_id, tags=tags)
    assert len(mlflow_runs(mlflow_url, database, experiment_id)) == 2

    train(database, root, experiment_id)
    assert forwarder.round() == 0
    (kept,) = mlflow_runs(mlflow_url, database, experiment_id)
    assert kept.info.run_id == run.info.run_id
