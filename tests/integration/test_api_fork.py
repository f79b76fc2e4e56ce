"""Forks over HTTP: queued with their lineage, refused field by field, and their checkpoint safe from deletion."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.address import publish_address
from api.auth import ensure_token
from orchestrator.execution.checkpoints import Shelf
from orchestrator.execution.conductor import Conductor, Next, Places
from orchestrator.spec import ExperimentSpec
from orchestrator.store.records import RunRecord
from tests.support import lab as labs
from tests.support.api import Installation, installation, listening
from tests.support.training import STEP_TOKENS, train_config
from trainer.config.run import RunReport
from trainer.data.shards import default_cache_dir
from trainer.worker import run

NUM_STEPS = 8


def document(**fields: Any) -> dict[str, Any]:
    base = train_config(num_steps=NUM_STEPS, loop={"checkpoint_every_tokens": 2 * STEP_TOKENS, "log_every_steps": 2})
    return {"name": "parent", "base": base.model_dump(mode="json"), "num_trials": 1} | fields


def driven(lab: Installation, experiment_id: str) -> None:
    """Runs an experiment to its end in this process, as its driver would."""
    with lab.database.transaction() as work:
        epoch = work.experiments.claim(experiment_id, owner="test", ttl_s=600)
    assert epoch is not None
    conductor = Conductor(
        lab.database,
        lab.home,
        experiment_id=experiment_id,
        epoch=epoch,
        places=Places(max_concurrent=1, num_threads=1, use_gpu=False),
    )
    while True:
        request = conductor.next_run()
        if isinstance(request, Next):
            break
        request = request.model_copy(update={"cache_folder": str(default_cache_dir())})

        def report(report: RunReport, run_id: str = request.run_id) -> None:
            conductor.report(run_id, report)

        run(request, report)
        conductor.ended(request.run_id, None)
    conductor.settle()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Installation]:
    with installation(tmp_path / "home") as made:
        yield made


@pytest.fixture
def client(lab: Installation) -> TestClient:
    return lab.client()


def parent(lab: Installation, client: TestClient, **fields: Any) -> RunRecord:
    """The run of a finished experiment that keeps all its checkpoints."""
    sent = document(keep_checkpoints={"last": 10}, **fields)
    experiment_id = client.post("/v1/experiments", json=sent).json()["id"]
    driven(lab, experiment_id)
    with lab.database.read() as work:
        (record,) = work.runs.of_experiment(experiment_id)
    return record


def test_fork_is_queued_runs_and_tells_where_it_comes_from(lab: Installation, client: TestClient):
    run = parent(lab, client)
    kept = client.get(f"/v1/trials/{run.trial_id}/checkpoints").json()
    assert [checkpoint["step"] for checkpoint in kept["items"]] == [2, 4, 6, 8]
    assert "optimizer.lr" in kept["forkable"]
    assert "model.dim" not in kept["forkable"]

    answer = client.post(f"/v1/runs/{run.id}:fork", json={"step": 4, "set": {"optimizer.lr": 0.001}})
    assert answer.status_code == 201, answer.text
    forked = answer.json()
    assert answer.headers["Location"] == f"/v1/experiments/{forked['id']}"
    assert forked["name"] == "parent, trial 0 from step 4"
    lineage = forked["fork"]
    assert (lineage["parent_experiment_id"], lineage["trial_id"], lineage["run_id"]) == (
        run.experiment_id,
        run.trial_id,
        run.id,
    )
    assert (lineage["parent_name"], lineage["trial_number"], lineage["name"]) == ("parent", 0, forked["name"])
    assert (lineage["step"], lineage["changes"]) == (4, {"optimizer.lr": 0.001})
    assert client.get(f"/v1/trials/{run.trial_id}/forks").json()["items"] == [lineage]
    assert client.get(f"/v1/experiments/{run.experiment_id}").json()["fork"] is None

    driven(lab, forked["id"])
    after = client.get(f"/v1/experiments/{forked['id']}").json()
    assert after["state"] == "completed"
    (trial,) = client.get(f"/v1/experiments/{forked['id']}/trials").json()["items"]
    assert trial["summary"]["start"]["kind"] == "fork"
    evaluations = client.get(f"/v1/trials/{trial['id']}/evaluations").json()["items"]
    assert {point["step"] for point in evaluations} == {NUM_STEPS}


def test_fork_without_a_change_gives_the_result_of_its_parent(lab: Installation, client: TestClient):
    run = parent(lab, client)
    forked = client.post(f"/v1/runs/{run.id}:fork", json={"step": 2}).json()
    driven(lab, forked["id"])
    (trial,) = client.get(f"/v1/experiments/{forked['id']}/trials").json()["items"]
    assert trial["objective"] == client.get(f"/v1/trials/{run.trial_id}").json()["objective"]


def test_fork_of_a_fork_has_the_fork_for_its_parent(lab: Installation, client: TestClient):
    run = parent(lab, client)
    first = client.post(f"/v1/runs/{run.id}:fork", json={"step": 2, "set": {"optimizer.lr": 0.002}}).json()
    driven(lab, first["id"])
    with lab.database.read() as work:
        (of_first,) = work.runs.of_experiment(first["id"])
    second = client.post(f"/v1/runs/{of_first.id}:fork", json={"step": 6, "set": {"optimizer.lr": 0.001}}).json()
    assert second["fork"]["parent_experiment_id"] == first["id"]
    driven(lab, second["id"])
    assert client.get(f"/v1/experiments/{second['id']}").json()["state"] == "completed"


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({"step": 4, "set": {"model.dim": 64}}, "/set/model.dim", "not_forkable"),
        (
            {"step": 4, "set": {"data.tokenizer": "bpe-4096", "model.vocab_size": 4096}},
            "/set/data.tokenizer",
            "not_forkable",
        ),
        ({"step": 4, "set": {"optimizer.lr": -1}}, "/set/optimizer.lr", "not_forkable"),
        ({"step": 4, "set": {"optimizer.rate": 1}}, "/set/optimizer.rate", "not_forkable"),
        ({"step": 4, "set": {"loop.budget_tokens": 2 * STEP_TOKENS}}, "/set/loop.budget_tokens", "not_forkable"),
        ({"step": 5}, "/step", "no_checkpoint"),
        ({"set": {}}, "/step", "missing"),
        ({"step": 4, "steps": 5}, "/steps", "extra_forbidden"),
    ],
)
def test_fork_that_cannot_be_is_refused_with_its_field(
    lab: Installation, client: TestClient, body: dict[str, Any], pointer: str, code: str
):
    run = parent(lab, client)
    answer = client.post(f"/v1/runs/{run.id}:fork", json=body)
    assert answer.status_code == 422
    (error, *_) = [each for each in answer.json()["errors"] if each["pointer"] == pointer]
    assert error["code"] == code
    if code == "not_forkable":
        assert "loop.{budget_tokens" in error["allowed"]
    assert len(client.get("/v1/experiments").json()["items"]) == 1


def test_same_key_gives_the_same_fork(lab: Installation, client: TestClient):
    run = parent(lab, client)
    headers = {"Idempotency-Key": "once"}
    first = client.post(f"/v1/runs/{run.id}:fork", json={"step": 4}, headers=headers)
    again = client.post(f"/v1/runs/{run.id}:fork", json={"step": 4}, headers=headers)
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    other = client.post(f"/v1/runs/{run.id}:fork", json={"step": 6}, headers=headers)
    assert other.status_code == 422
    assert len(client.get(f"/v1/trials/{run.trial_id}/forks").json()["items"]) == 1


def test_unknown_run_has_no_forks(client: TestClient):
    assert client.post("/v1/runs/run_nobody:fork", json={"step": 0}).status_code == 404
    assert client.get("/v1/trials/trl_nobody/forks").status_code == 404
    assert client.get("/v1/trials/trl_nobody/checkpoints").status_code == 404


def test_checkpoint_of_a_fork_is_not_deleted(lab: Installation, client: TestClient):
    """The run is still going, and keeps only its newest checkpoint but for the fork's."""
    experiment_id = client.post("/v1/experiments", json=document()).json()["id"]
    with lab.database.transaction() as work:
        epoch = work.experiments.claim(experiment_id, owner="test", ttl_s=600)
    assert epoch is not None
    places = Places(max_concurrent=1, num_threads=1, use_gpu=False)
    conductor = Conductor(lab.database, lab.home, experiment_id=experiment_id, epoch=epoch, places=places)
    request = conductor.next_run()
    assert not isinstance(request, Next)

    def report(report: Any) -> None:
        conductor.report(request.run_id, report)
        if report.step == 4:
            assert client.post(f"/v1/runs/{request.run_id}:fork", json={"step": 4}).status_code == 201

    run(request.model_copy(update={"cache_folder": str(default_cache_dir())}), report)
    with lab.database.read() as work:
        record = work.runs.get(request.run_id)
        steps = [checkpoint.step for checkpoint in work.checkpoints.of_trial(record.trial_id)]
    assert steps == [4, 8]
    assert {path.name for path in (lab.home / record.folder / "checkpoints").iterdir()} == {
        "step-00000004",
        "step-00000008",
    }
    (pinned, newest) = client.get(f"/v1/trials/{record.trial_id}/checkpoints").json()["items"]
    assert (pinned["is_pinned"], newest["is_pinned"]) == (True, False)


def test_shelf_of_an_older_spec_keeps_the_newest(lab: Installation):
    """Specs that were stored before `keep_checkpoints` have none."""
    spec = ExperimentSpec.model_validate(document())
    stored = spec.model_dump(mode="json")
    del stored["keep_checkpoints"]
    assert ExperimentSpec.model_validate(stored).keep_checkpoints.last == 1
    assert Shelf(lab.database, lab.home, epoch=1, spec=spec)


def test_commands_fork_replay_and_bundle_by_id(tmp_path: Path):
    root = tmp_path / "home"
    root.mkdir()
    with installation(root, token=ensure_token(root / "token")) as lab, listening(lab) as url:
        publish_address(root, url)
        client = lab.client(headers={"Authorization": f"Bearer {lab.settings.token}"})
        run = parent(lab, client)

        forked = labs.evenload(root, "fork", run.trial_id, "--at", "4", "--set", "optimizer.lr=1e-3", "--json")
        assert forked.returncode == 0, forked.stderr
        lineage = json.loads(forked.stdout)["fork"]
        assert (lineage["run_id"], lineage["step"], lineage["changes"]) == (run.id, 4, {"optimizer.lr": 0.001})
        refused = labs.evenload(root, "fork", run.id, "--at", "4", "--set", "model.dim=64")
        assert refused.returncode == 1
        assert "/set/model.dim" in refused.stderr

        replayed = labs.evenload(root, "replay", run.id, "--from", "5", "--json")
        assert replayed.returncode == 0, replayed.stderr
        assert json.loads(replayed.stdout)["started_from"] == 4
        bundle = str(tmp_path / "run.tar.gz")
        written = labs.evenload(root, "bundle", "--out", bundle, run.id, "--json")
        assert written.returncode == 0, written.stderr
        assert "spec.json" in json.loads(written.stdout)["files"]
    with tarfile.open(bundle) as archive:
        spec = json.load(archive.extractfile("spec.json"))  # type: ignore[arg-type]
    assert spec["name"] == "parent"
