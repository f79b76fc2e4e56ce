"""A submission that is killed at every system call that changes something: wholly there or not at all, and once."""

import functools
import os
from pathlib import Path

from fastapi import Response
from sqlalchemy import func, select

from api.routes.experiments import submit_experiment
from orchestrator.store.models import EventRow, ExperimentRow, TrialRow
from orchestrator.store.session import Database, open_database
from tests.support.specs import experiment_document
from tests.support.system_calls import killed_at

DOCUMENT = experiment_document(baselines=[{"name": "dense", "set": {"model.moe": None}}])
WHOLE = {"experiments": 1, "trials": 1, "events": 2}
"""Rows of one submission: the experiment, its baseline, and an event each."""
NOTHING = dict.fromkeys(WHOLE, 0)
EVERY_CALL = bool(os.environ.get("EVENLOAD_CHAOS"))
"""Not only those that write or send; `make chaos` asks for it."""


def submit(database: Database, key: str, answers: Path) -> None:
    """What the API does with a request."""
    answer = submit_experiment(DOCUMENT, database, Response(), "local", key)
    descriptor = os.open(answers, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, f"{key} {answer.id}\n".encode())
    os.close(descriptor)
    database.close()


def rows(database: Database, key: str) -> dict[str, int]:
    """How many rows of each kind the experiment of a key has."""
    of_key = select(ExperimentRow.id).where(ExperimentRow.idempotency_key == key)
    counts = {"experiments": select(func.count()).select_from(of_key.subquery())}
    for table in (TrialRow, EventRow):
        counts[table.__tablename__] = select(func.count()).select_from(table).where(table.experiment_id.in_(of_key))
    with database.read() as work:
        return {name: work.connection.execute(query).scalar_one() for name, query in counts.items()}


def test_I1_I9_submission_killed_at_any_call_is_whole_or_absent_and_its_retry_gives_one(
    database_url: str, tmp_path: Path
) -> None:
    answers = tmp_path / "answers"
    answers.touch()
    database = open_database(database_url)
    submit(database, "warm", answers)  # leaves no connection open, which a child must not inherit
    found: list[bool] = []
    while killed_at(functools.partial(submit, database, f"key-{len(found)}", answers), len(found), every=EVERY_CALL):
        key = f"key-{len(found)}"
        there = rows(database, key)
        assert there in (WHOLE, NOTHING), f"killed at call {len(found)}"
        found.append(there == WHOLE)
        assert there == WHOLE or key not in answers.read_text().split(), f"killed at call {len(found)}: said, not there"
        response = Response()
        submit_experiment(DOCUMENT, database, response, "local", key)
        assert response.headers.get("Idempotency-Replayed") == ("true" if there == WHOLE else None)
        assert rows(database, key) == WHOLE
        database.close()
    assert set(found) == {True, False}, "kills before and after the commit"
