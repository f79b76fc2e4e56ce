"""The history of an experiment as pages and as a stream."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.routes import events
from tests.support.api import Installation, installation
from tests.support.specs import experiment_document

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Installation]:
    with installation(tmp_path, heartbeat_s=0.02) as ready:
        yield ready


def submitted(client: TestClient) -> str:
    return client.post("/v1/experiments", json=experiment_document()).json()["id"]


def sent(text: str) -> list[tuple[str, str | None]]:
    """(event name, id) of each event in a stream."""
    found: list[tuple[str, str | None]] = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            found.append((fields["event"], fields.get("id")))
    return found


def test_pages_and_stream_carry_the_same_events_and_end_with_the_experiment(lab: Installation) -> None:
    client = lab.client()
    other = submitted(client)
    experiment_id = submitted(client)
    client.post(f"/v1/experiments/{experiment_id}:cancel")
    page = client.get(f"/v1/experiments/{experiment_id}/events").json()
    assert page["items"][0]["kind"] == "experiment.state"
    assert page["finished"]
    assert {event["experiment_id"] for event in page["items"]} == {experiment_id}
    stream = client.get(f"/v1/experiments/{experiment_id}/events", headers=STREAM)
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.headers["cache-control"] == "no-cache"
    assert sent(stream.text) == [*((event["kind"], str(event["id"])) for event in page["items"]), ("end", None)]
    assert not client.get(f"/v1/experiments/{other}/events").json()["finished"]


def test_pages_join_without_gap_or_overlap(lab: Installation) -> None:
    client = lab.client()
    experiment_id = submitted(client)
    client.post(f"/v1/experiments/{experiment_id}:cancel")
    whole = client.get(f"/v1/experiments/{experiment_id}/events").json()["items"]
    after, ids = 0, list[int]()
    while True:
        page = client.get(f"/v1/experiments/{experiment_id}/events", params={"after": after, "limit": 1}).json()
        ids += [event["id"] for event in page["items"]]
        after = page["next_after"]
        if page["finished"]:
            break
    assert ids == [event["id"] for event in whole]


def test_I3_a_broken_stream_goes_on_after_the_last_event_id(lab: Installation) -> None:
    client = lab.client()
    experiment_id = submitted(client)
    client.post(f"/v1/experiments/{experiment_id}:cancel")
    ids = [event["id"] for event in client.get(f"/v1/experiments/{experiment_id}/events").json()["items"]]
    resumed = client.get(
        f"/v1/experiments/{experiment_id}/events", headers={**STREAM, "Last-Event-ID": str(ids[0])}, params={"after": 0}
    )
    assert [one for _, one in sent(resumed.text)] == [*map(str, ids[1:]), None]


@pytest.mark.parametrize("given", ["x", "-1", "1" * 40, "1;2"])
def test_a_last_event_id_that_is_none_is_refused(lab: Installation, given: str) -> None:
    client = lab.client()
    experiment_id = submitted(client)
    answer = client.get(f"/v1/experiments/{experiment_id}/events", headers={**STREAM, "Last-Event-ID": given})
    assert answer.status_code == 422


def test_a_stream_beats_while_nothing_happens_and_brings_what_does(lab: Installation) -> None:
    client = lab.client()
    experiment_id = submitted(client)
    # Starlette's test client collects an answer until it ends, so that the end is brought about from beside.
    heartbeats_wanted = threading.Timer(0.3, lambda: lab.client().post(f"/v1/experiments/{experiment_id}:cancel"))
    heartbeats_wanted.start()
    text = client.get(f"/v1/experiments/{experiment_id}/events", headers=STREAM).text
    heartbeats_wanted.join()
    assert "\n: ping\n\n" in f"\n{text}"
    assert sent(text)[-1] == ("end", None)
    assert "command.applied" in {kind for kind, _ in sent(text)}


def test_streams_are_limited_and_given_back(lab: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    client = lab.client()
    experiment_id = submitted(client)
    client.post(f"/v1/experiments/{experiment_id}:cancel")
    monkeypatch.setattr(events, "MAX_STREAMS", 1)
    for _ in range(3):
        assert client.get(f"/v1/experiments/{experiment_id}/events", headers=STREAM).status_code == 200
    lab.app.state.streams.add(0)
    refused = client.get(f"/v1/experiments/{experiment_id}/events", headers=STREAM)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "5"
    page: dict[str, Any] = client.get(f"/v1/experiments/{experiment_id}/events").json()
    assert page["items"]  # polling still works


def test_events_of_no_experiment_are_not_found(lab: Installation) -> None:
    for headers in ({}, STREAM):
        assert lab.client().get("/v1/experiments/exp_0/events", headers=headers).status_code == 404
