"""Submitting over HTTP: what is stored, what is refused and how it is said, and what a repeated request does."""

import copy
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from orchestrator.store.events import Events
from tests.support.api import Installation, installation
from tests.support.specs import experiment_document

NODES = {"nodes": [{"cpus": 4, "gpus": 0, "memory_gib": 2.0}]}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Installation]:
    with installation(tmp_path) as ready:
        with ready.database.transaction() as work:
            work.services.report("ray", state="ready", detail=NODES)
        yield ready


@pytest.fixture
def client(lab: Installation) -> Iterator[TestClient]:
    with lab.client() as client:
        yield client


def num_experiments(client: TestClient) -> int:
    return len(client.get("/v1/experiments").json()["items"])


def changed(*path: str | int, value: Any) -> dict[str, Any]:
    """The valid document with the value at `path` replaced or added."""
    document = copy.deepcopy(experiment_document())
    place: Any = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return document


def test_a_submitted_experiment_is_queued_with_its_documents(client: TestClient) -> None:
    document = experiment_document(baselines=[{"name": "dense", "set": {"model.moe": None}}])
    answer = client.post("/v1/experiments", json=document)
    assert answer.status_code == 201
    experiment = answer.json()
    assert answer.headers["location"] == f"/v1/experiments/{experiment['id']}"
    assert client.get(answer.headers["location"]).json() == experiment
    assert experiment["state"] == "queued"
    assert experiment["document"] == document
    assert experiment["spec"]["max_retries"] == 3  # a default, filled in
    assert experiment["num_trials"] == 9
    assert experiment["trial_counts"]["queued"] == 1  # the baseline
    trials = client.get(f"/v1/experiments/{experiment['id']}/trials").json()["items"]
    assert [(trial["kind"], trial["label"]) for trial in trials] == [("baseline", "dense")]


MANY_CHOICES = {
    f"optimizer.{role}.lr_scale": {"choice": [n / 10 for n in range(1, 181)]} for role in ("router", "expert")
}

BAD_INPUT: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("typo", changed("base", "model", "moe", "topk", value=2), "/base/model/moe/topk", "topk", "top_k"),
    ("top_k", changed("base", "model", "moe", "top_k", value=9), "/base/model/moe/top_k", "9", "4"),
    ("path", changed("space", "model.moe.experts", value={"int": [1, 2]}), "/space/model.moe.experts", "experts",
     "num_experts"),
    ("memory", changed("base", "model", "num_layers", value=512) | {"space": {}, "num_trials": 1}, "", "GiB", "GiB"),
    ("grid", experiment_document(
        sampler={"kind": "grid"}, num_trials=None,
        space={"optimizer.lr": {"float": [0.0, 1.0], "step": 1e-9}},
    ), "/space", "1,000,000,000", "100,000"),
    ("dataset", changed("base", "data", "mixture", value={"shakespeare": 1}), "/base/data/mixture/shakespeare",
     "shakespeare", "speeches"),
    ("text", changed("base", "optimizer", "lr", value="fast"), "/base/optimizer/lr", "fast", "number"),
    ("bound", changed("base", "optimizer", "lr", value=-1), "/base/optimizer/lr", "-1", "0"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "pointer", "given", "allowed"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT]
)
def test_bad_input_is_answered_with_field_value_and_what_is_allowed(
    client: TestClient, document: dict[str, Any], pointer: str, given: str, allowed: str
) -> None:
    if pointer == "":  # the model: wider, so that it does not fit
        document["base"]["model"] |= {"dim": 4096, "hidden_dim": 16384}
        pointer = "/base/model"
    for path in ("/v1/experiments", "/v1/experiments:validate"):
        answer = client.post(path, json=document)
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        errors = answer.json()["errors"]
        found = [error for error in errors if error["pointer"] == pointer]
        assert found, errors
        said = json.dumps(found)
        assert given in said
        assert allowed in said
    assert num_experiments(client) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(client: TestClient, value: float) -> None:
    body = json.dumps(changed("base", "optimizer", "lr", value=value))
    answer = client.post("/v1/experiments", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/base/optimizer/lr"]
    assert num_experiments(client) == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1, 2]",
        b'"a spec"',
        b"null",
        b'{"name": "a", "name": "b"}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\xff\xfe",
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "cut", "list", "text", "null", "twice", "deep-list", "deep-object", "not-utf8", "huge-number"],
)
def test_bodies_that_are_no_spec_are_answered_without_a_traceback(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/experiments", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["errors"]
    assert "Traceback" not in answer.text
    assert num_experiments(client) == 0


def test_a_body_of_50_mb_is_refused_before_it_is_parsed(client: TestClient) -> None:
    body = json.dumps({"name": "x" * 50_000_000}).encode()
    answer = client.post("/v1/experiments", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert "at most 2,097,152 bytes" in answer.json()["detail"]


def test_everything_that_is_wrong_is_said_at_once(client: TestClient) -> None:
    document = changed("base", "optimizer", "lr", value=-1)
    document["base"]["model"]["dims"] = 3
    document["num_trials"] = 0
    pointers = {error["pointer"] for error in client.post("/v1/experiments", json=document).json()["errors"]}
    assert {"/base/optimizer/lr", "/base/model/dims", "/num_trials"} <= pointers


def test_I9_a_replayed_request_gives_the_first_answer(client: TestClient) -> None:
    headers = {"Idempotency-Key": "abc"}
    first = client.post("/v1/experiments", json=experiment_document(), headers=headers)
    # The same document with its fields in another order is the same request.
    reordered = dict(reversed(experiment_document().items()))
    second = client.post("/v1/experiments", json=reordered, headers=headers)
    assert (first.status_code, second.status_code) == (201, 201)
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert second.json() == first.json()
    assert num_experiments(client) == 1


def test_a_key_with_another_body_is_refused(client: TestClient) -> None:
    headers = {"Idempotency-Key": "abc"}
    client.post("/v1/experiments", json=experiment_document(), headers=headers)
    answer = client.post("/v1/experiments", json=experiment_document(num_trials=9), headers=headers)
    assert answer.status_code == 422
    assert answer.json()["type"].endswith("idempotency-key-reused")
    assert num_experiments(client) == 1


def test_without_a_key_every_request_is_a_new_experiment(client: TestClient) -> None:
    for _ in range(2):
        client.post("/v1/experiments", json=experiment_document())
    assert num_experiments(client) == 2


def test_I9_racing_requests_with_one_key_make_one_experiment(tmp_path: Path, database_url: str) -> None:
    with installation(tmp_path, url=database_url) as lab, lab.client() as client:
        _race(client)


def _race(client: TestClient) -> None:
    def submit(_: int) -> tuple[int, str, bool]:
        answer = client.post("/v1/experiments", json=experiment_document(), headers={"Idempotency-Key": "race"})
        return answer.status_code, answer.json()["id"], "idempotency-replayed" in answer.headers

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(submit, range(16)))
    assert {status for status, _, _ in answers} == {201}
    assert len({experiment_id for _, experiment_id, _ in answers}) == 1
    assert sum(not replayed for _, _, replayed in answers) == 1
    assert num_experiments(client) == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 201, "tab\t"])
def test_a_key_that_is_no_key_is_refused(client: TestClient, key: str) -> None:
    answer = client.post("/v1/experiments", json=experiment_document(), headers={"Idempotency-Key": key})
    assert answer.status_code == 422
    assert num_experiments(client) == 0


def test_I7_cancelling_is_idempotent_and_final(client: TestClient) -> None:
    experiment_id = client.post("/v1/experiments", json=experiment_document()).json()["id"]
    first = client.post(f"/v1/experiments/{experiment_id}:cancel")
    second = client.post(f"/v1/experiments/{experiment_id}:cancel")
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["state"] == second.json()["state"] == "cancelled"  # nobody was driving it
    assert first.json() == second.json()


def test_an_unknown_id_is_not_found(client: TestClient) -> None:
    for path in ("experiments/exp_0", "experiments/exp_0/trials", "experiments/exp_0/comparison", "trials/t", "runs/r"):
        answer = client.get(f"/v1/{path}")
        assert answer.status_code == 404, path
        assert answer.json()["type"].endswith("not-found")
    assert client.post("/v1/experiments/exp_0:cancel").status_code == 404


def test_I1_a_write_that_fails_half_way_leaves_nothing(
    lab: Installation, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, lab.client(raise_server_exceptions=False) as client:
        patch.setattr(Events, "add", disk_full)
        answer = client.post("/v1/experiments", json=experiment_document(), headers={"Idempotency-Key": "k"})
        assert answer.status_code == 500
        assert "No space" not in answer.text
    assert num_experiments(client) == 0
    assert (
        client.post("/v1/experiments", json=experiment_document(), headers={"Idempotency-Key": "k"}).status_code == 201
    )


def test_refusals_take_about_as_long_as_admissions(client: TestClient) -> None:
    # A grid of 10^9 points is counted, not listed: the bound is far above the usual few ms, far below any listing.
    grid = next(case[1] for case in BAD_INPUT if case[0] == "grid")
    started = time.perf_counter()
    client.post("/v1/experiments", json=grid)
    assert time.perf_counter() - started < 5
