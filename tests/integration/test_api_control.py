"""Control over REST, with the Python client, and from the command line, against a server that really listens."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fastapi.testclient import TestClient

from api.auth import ensure_owner, owner_tokens
from api.cli import cli
from api.client import Client
from api.errors import RequestFailed, SpecRefused
from orchestrator.states import Cause, ExperimentState, RunState, TrialState
from orchestrator.store.session import Database
from tests.support.api import TOKEN, Installation, installation, listening
from tests.support.specs import experiment_document
from tests.support.stores import claimed, proposed, started


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, str]]:
    with installation(tmp_path_factory.mktemp("home")) as lab, listening(lab) as url:
        yield lab, url


@pytest.fixture
def database(served: tuple[Installation, str]) -> Database:
    return served[0].database


@pytest.fixture
def client(served: tuple[Installation, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("EVENLOAD_URL", served[1])
    monkeypatch.setenv("EVENLOAD_TOKEN", TOKEN)
    monkeypatch.setenv("COLUMNS", "300")
    with Client() as client:
        yield client


@pytest.fixture
def rest(served: tuple[Installation, str]) -> TestClient:
    return served[0].client()


def evenload(*arguments: str) -> Result:
    """What a command says, in this process."""
    return CliRunner().invoke(cli, arguments)


def failed_trial(database: Database) -> tuple[str, str]:
    """Ids of a running experiment and of a trial of it that has failed."""
    experiment_id, epoch = claimed(database)
    trial = proposed(database, experiment_id, epoch)
    run = started(database, trial.id, epoch)
    with database.transaction() as work:
        work.runs.settle(run.id, epoch=epoch, state=RunState.FAILED, cause=Cause.ERROR)
        work.trials.settle(trial.id, epoch=epoch, state=TrialState.FAILED, cause=Cause.ERROR)
    return experiment_id, trial.id


def test_an_experiment_is_paused_resumed_and_cancelled_with_the_client(client: Client) -> None:
    experiment = client.submit(experiment_document(priority=3))
    assert (experiment.owner, experiment.priority) == ("local", 3)
    assert client.pause(experiment.id) == client.pause(experiment.id, deadline_s=5)
    assert client.experiment(experiment.id).state is ExperimentState.PAUSED
    assert client.resume(experiment.id).state is ExperimentState.QUEUED
    assert client.prioritize(experiment.id, -7).priority == -7
    assert client.kill(experiment.id).state is ExperimentState.CANCELLED
    kinds = [(command.kind, command.state) for command in client.commands(experiment.id).items]
    assert kinds == [(kind, "applied") for kind in ("pause", "resume", "prioritize", "kill")]
    with pytest.raises(RequestFailed) as refused:
        client.resume(experiment.id)
    assert refused.value.problem.status == 409
    assert "is cancelled and cannot be resumed" in refused.value.problem.detail


def test_what_waits_says_for_what_until_it_gets_its_places(client: Client, database: Database) -> None:
    running, epoch = claimed(database)
    trial = proposed(database, running, epoch)
    waiting = client.submit(experiment_document(name="waits"))
    assert waiting.reason == "waits for the orchestrator, which does not report; `evenload up` starts it"
    nodes = [{"cpus": 1.0, "gpus": 0.0, "memory_gib": 8.0}]
    with database.transaction() as work:
        work.services.report("orchestrator", state="ready", pid=1, detail={})
        work.services.report("ray", state="ready", pid=1, detail={"nodes": nodes})
    started(database, trial.id, epoch)
    with database.transaction() as work:
        work.experiments.renew(running, epoch=epoch, ttl_s=60)
    reason = client.experiment(waiting.id).reason
    assert reason.startswith("needs 1 CPU on one node, 0 free; ")
    queue = client.queue()
    assert queue.is_served
    assert queue.used.cpus == 1
    mine = next(entry for entry in queue.items if entry.experiment_id == waiting.id)
    assert (mine.reason, mine.num_running, mine.num_starts) == (reason, 0, 0)
    assert client.trials(running)[0].reason == ""
    said = evenload("queue")
    assert "waits" in said.output
    assert "in use: 1 of 1 CPUs" in said.output
    client.kill(waiting.id)
    with database.transaction() as work:
        work.experiments.request_cancel(running)
        work.experiments.settle(running, epoch=epoch, state=ExperimentState.CANCELLED)
        work.services.report("orchestrator", state="stopped")


def test_a_failed_trial_is_tried_again_and_says_by_which(client: Client, database: Database) -> None:
    _, failed = failed_trial(database)
    again = client.retry_trial(failed)
    assert client.retry_trial(failed).id == again.id
    assert (again.kind, again.retry_of, again.params) == ("added", failed, client.trial(failed).params)
    assert client.trial(failed).retried_by == again.id
    assert evenload("retry", failed).output == f"{again.id}\n"
    with pytest.raises(RequestFailed, match="queued"):
        client.retry_trial(again.id)


def test_a_point_by_hand_is_checked_like_one_of_the_spec(client: Client) -> None:
    experiment = client.submit(experiment_document())
    trial = client.add_trial(experiment.id, {"optimizer.lr": 0.0015}, label="my guess", idempotency_key="mine")
    assert client.add_trial(experiment.id, {"optimizer.lr": 0.0015}, label="my guess", idempotency_key="mine") == trial
    assert (trial.kind, trial.label, trial.params["optimizer.lr"]) == ("added", "my guess", 0.0015)
    with pytest.raises(SpecRefused) as refused:
        client.add_trial(experiment.id, {"optimizer.lr": 1e9, "optimizer.learning": 1})
    pointers = [error.pointer for error in refused.value.problem.errors]
    assert pointers == ["/params/optimizer.learning", "/params/optimizer.lr"]
    said = evenload("add", experiment.id, "--set", "optimizer.lr=0.001", "--json")
    assert json.loads(said.output)["params"]["optimizer.lr"] == 0.001
    stopped = client.stop_trial(trial.id, deadline_s=5)
    assert (stopped.state, stopped.cause) == (TrialState.CANCELLED, Cause.USER)


def test_many_are_answered_for_one_by_one(client: Client, rest: TestClient) -> None:
    first, second = (client.submit(experiment_document(name=f"bulk {index}")) for index in range(2))
    client.kill(second.id)
    answers = client.control("pause", ids=[first.id, second.id, "exp_nothing", first.id]).items
    assert [(answer.id, answer.ok, answer.state) for answer in answers] == [
        (first.id, True, "paused"),
        (second.id, False, "cancelled"),
        ("exp_nothing", False, None),
    ]
    assert [None if answer.problem is None else answer.problem.status for answer in answers] == [None, 409, 404]
    said = evenload("resume", first.id, second.id)
    assert said.exit_code == 1
    assert f"{first.id} is queued" in said.output
    chosen = client.control("cancel", states=["queued"], owner="local", name_contains="bulk").items
    assert [(answer.id, answer.state) for answer in chosen] == [(first.id, "cancelled")]
    for body in ({}, {"ids": ["exp_1"], "filter": {}}, {"ids": []}, {"ids": ["exp_1"], "priority": 3}):
        assert rest.post("/v1/experiments:pause", json=body).status_code == 422, body


def test_trials_are_chosen_by_state(client: Client, database: Database, rest: TestClient) -> None:
    experiment_id, failed = failed_trial(database)
    body = {"filter": {"experiment_id": experiment_id}}
    (answer,) = rest.post("/v1/trials:retry", json=body).json()["items"]
    assert answer == {"id": failed, "ok": True, "state": "failed", "trial_id": answer["trial_id"], "problem": None}
    (stopped,) = rest.post("/v1/trials:stop", json=body).json()["items"]
    assert (stopped["id"], stopped["state"]) == (answer["trial_id"], "cancelled")
    assert evenload("stop", failed).exit_code == 1
    assert rest.post("/v1/trials:stop", json={"filter": {"experiment_id": "exp_0"}}).status_code == 404


def test_experiments_are_those_of_whose_token_submitted_them(tmp_path: Path) -> None:
    token = ensure_owner(tmp_path / "tokens", "ada")
    assert owner_tokens(tmp_path / "tokens") == {"ada": token}
    with installation(tmp_path / "home", owners=owner_tokens(tmp_path / "tokens")) as lab:
        hers = lab.client(headers={"Authorization": f"Bearer {token}"})
        mine = lab.client()
        owners = [each.post("/v1/experiments", json=experiment_document()).json()["owner"] for each in (hers, mine)]
        assert owners == ["ada", "local"]
        assert lab.client(headers={"Authorization": "Bearer ada"}).get("/v1/experiments").status_code == 401
        session = lab.client(headers={"Sec-Fetch-Site": "same-origin"})
        assert session.post("/v1/session", json={"token": token}).status_code == 204
        assert session.post("/v1/experiments", json=experiment_document()).json()["owner"] == "ada"
        answers = mine.post("/v1/experiments:pause", json={"filter": {"owner": "ada"}}).json()["items"]
        assert [answer["ok"] for answer in answers] == [True, True]


@pytest.mark.parametrize("name", ["local", "Ada", "a/b", "..", ""])
def test_owner_has_a_name_that_a_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="an owner is named"):
        ensure_owner(tmp_path, name)
