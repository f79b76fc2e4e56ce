"""A database in trouble as the API's clients meet it: refused for now, nothing written, and taken right afterwards."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from orchestrator.store.events import Events
from orchestrator.store.migrate import upgrade
from tests.support import postgres
from tests.support.api import Installation, installation
from tests.support.specs import experiment_document

RECOVERY_S = 5.0
KEY = {"Idempotency-Key": "in-trouble"}
Trouble = Callable[[Installation, pytest.MonkeyPatch], AbstractContextManager[None]]


@contextmanager
def locked(lab: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another process is writing, and does not end."""
    other = sqlite3.connect(lab.home / "evenload.db")
    other.execute("BEGIN IMMEDIATE")
    yield
    other.rollback()
    other.close()


@contextmanager
def pragma(lab: Installation, during: str, after: str) -> Iterator[None]:
    """A setting of the one connection that the API has."""
    with lab.database.read() as work:
        work.connection.execute(text(f"PRAGMA {during}"))
    yield
    with lab.database.read() as work:
        work.connection.execute(text(f"PRAGMA {after}"))


def full(lab: Installation, monkeypatch: pytest.MonkeyPatch) -> AbstractContextManager[None]:
    """Not a page more."""
    return pragma(lab, "max_page_count = 1", "max_page_count = 1000000")


def read_only(lab: Installation, monkeypatch: pytest.MonkeyPatch) -> AbstractContextManager[None]:
    """Every write is refused."""
    return pragma(lab, "query_only = ON", "query_only = OFF")


@contextmanager
def connection_lost(lab: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The server ends the connection in the middle of the transaction."""
    add = Events.add

    def cut(self: Events, kind: str, **fields: object) -> None:
        self._connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        add(self, kind, **fields)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(Events, "add", cut)
        yield


@pytest.mark.parametrize("trouble", [locked, full, read_only], ids=lambda trouble: trouble.__name__)
def test_I1_I9_nothing_is_accepted_while_the_file_is_in_trouble(
    trouble: Trouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.store.session._BUSY_TIMEOUT_MS", 10)
    with installation(tmp_path) as lab, lab.client() as client:
        refused_then_taken(lab, client, trouble, monkeypatch)


@pytest.mark.postgres
def test_I1_I9_nothing_is_accepted_when_the_connection_is_lost(
    postgres_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres.database(postgres_server) as url:
        upgrade(url)
        with installation(tmp_path, url=url) as lab, lab.client() as client:
            refused_then_taken(lab, client, connection_lost, monkeypatch)


def refused_then_taken(
    lab: Installation, client: TestClient, trouble: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submits in trouble and after it."""
    before = client.post("/v1/experiments", json=experiment_document()).json()["id"]
    with trouble(lab, monkeypatch):
        for _ in range(2):
            # Longer than what is free within the pages that there are.
            document = experiment_document(description="x" * 9000)
            answer = client.post("/v1/experiments", json=document, headers=KEY)
            assert answer.status_code == 503, answer.text
            assert answer.headers["Retry-After"]
            assert answer.json()["type"].endswith("store-unavailable")
        listed = client.get("/v1/experiments")
        assert [(item["id"], item["state"]) for item in listed.json()["items"]] == [(before, "queued")]
    healed = time.monotonic()
    taken = client.post("/v1/experiments", json=experiment_document(), headers=KEY)
    assert taken.status_code == 201
    assert "Idempotency-Replayed" not in taken.headers
    assert client.post(f"/v1/experiments/{before}:cancel").json()["state"] == "cancelled"
    assert time.monotonic() - healed < RECOVERY_S
