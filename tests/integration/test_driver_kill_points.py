"""A driver killed at every step it takes: before and after each of its commits. Its successor comes to the same table.

What a driver does is commits and what lies between them, and only commits outlive it. So all moments at which it can be
killed are these: each commit not made, and each commit made with nobody told and nothing done that follows from it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlalchemy import event

from orchestrator.states import ExperimentState, TrialState, is_terminal
from orchestrator.store.session import Database
from tests.support.history import read_history, violations
from tests.support.mortal import Killed, MortalDatabase
from tests.support.sweeps import play, sqlite_database, submit, sweep_document, table, take_over

ONE_BATCH: dict[str, Any] = {"num_trials": 2}
TWO_BATCHES: dict[str, Any] = {"num_trials": 3, "sampler": {"kind": "tpe", "num_startup_trials": 2}}
"""With a proposal that follows from how the first batch ended."""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    for opened in sqlite_database(tmp_path):
        # A process that is killed loses nothing of what the system has been given; waiting for the disk is most of a
        # commit, and thousands are made here.
        event.listen(opened._engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
        yield opened


def driven(database: Database, root: Path, experiment_id: str, **mortality: Any) -> int:
    """Drives an experiment until its end, or the driver's; returns how many transactions that took."""
    mortal = MortalDatabase(database, **mortality)
    with contextlib.suppress(Killed):
        play(take_over(mortal, root, experiment_id))
    return mortal.num_transactions


@pytest.mark.parametrize(
    ("fields", "when", "stride"),
    [(ONE_BATCH, "before", 1), (ONE_BATCH, "after", 1), (TWO_BATCHES, "after", 4)],
    ids=["before each commit", "after each commit", "after some of more commits"],
)
def test_I2_I5_I7_I8_synchronous_sweep_killed_at_any_commit_gives_the_identical_table(
    database: Database, tmp_path: Path, fields: dict[str, Any], when: Literal["before", "after"], stride: int
) -> None:
    document = sweep_document(num_steps=16, synchronous=True, batch_size=2, **fields)
    undisturbed = submit(database, document)
    num_steps = driven(database, tmp_path, undisturbed)
    expected = table(database, undisturbed)
    assert {row[3] for row in expected} == {TrialState.COMPLETED, TrialState.PRUNED}
    with database.read() as work:
        first = work.events.last_id()
    kill_points = range(1, num_steps + 1, stride)
    for kill_at in kill_points:
        killed = submit(database, document)
        assert driven(database, tmp_path, killed, kill_at=kill_at, when=when) == kill_at
        # The one after it is killed while it recovers, or soon after; the third is left alone.
        for mortality in ({"kill_at": 1 + kill_at % 5, "when": when}, {}):
            with database.read() as work:
                is_over = is_terminal(work.experiments.get(killed).state)
            if not is_over:
                driven(database, tmp_path, killed, **mortality)
        assert table(database, killed) == expected, f"killed at transaction {kill_at} of {num_steps}"
    history = read_history(database, after=first)
    assert len(history.experiments) == len(kill_points)
    assert {experiment.state for experiment in history.experiments} == {ExperimentState.COMPLETED}
    assert violations(history) == []
