"""The migrated schema: equal to the models, made once, and keeping its rules against raw SQL."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from orchestrator.errors import IllegalTransition
from orchestrator.states import TRANSITIONS
from orchestrator.store.migrate import head_revision, schema_revision, upgrade
from orchestrator.store.models import Base, TransitionRow
from orchestrator.store.session import Database, make_engine
from tests.support.stores import claimed, proposed, started


def test_migrated_schema_is_that_of_the_models(database_url: str) -> None:
    engine = make_engine(database_url)
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)
        assert differences == []
        assert schema_revision(connection) == head_revision()
        checks = {
            (table, check["name"], _words(check["sqltext"]))
            for table in Base.metadata.tables
            for check in inspect(connection).get_check_constraints(table)
        }
    engine.dispose()
    declared = {
        (table.name, str(constraint.name), _words(str(constraint.sqltext)))
        for table in Base.metadata.tables.values()
        for constraint in table.constraints
        if hasattr(constraint, "sqltext")
    }
    assert checks == declared


def test_transition_table_is_that_of_states(database: Database) -> None:
    tables = {"ExperimentState": "experiments", "TrialState": "trials", "RunState": "runs"}
    with database.read() as work:
        rows = {tuple(row) for row in work.connection.execute(select(*TransitionRow.__table__.columns))}
    assert rows == {
        (tables[kind.__name__], source.value, target.value)
        for kind, moves in TRANSITIONS.items()
        for source, targets in moves.items()
        for target in targets
    }


def test_upgrade_by_several_at_once_happens_once(empty_database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upgrade, [empty_database_url] * 4))
    engine = make_engine(empty_database_url)
    with engine.connect() as connection:
        assert schema_revision(connection) == head_revision()
    engine.dispose()


def test_upgrade_that_fails_leaves_nothing_behind(empty_database_url: str) -> None:
    engine = make_engine(empty_database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE rungs (id INTEGER)"))
    with pytest.raises(DBAPIError):
        upgrade(empty_database_url)
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["rungs"]
    engine.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE experiments SET state = 'paused'",
        "UPDATE experiments SET state = 'nonsense'",
        "UPDATE experiments SET epoch = epoch - 1",
        "UPDATE experiments SET spec = '{}'",
        "UPDATE experiments SET document = '{}'",
        "UPDATE trials SET state = 'queued'",
        "UPDATE trials SET state = 'completed'",
        "UPDATE trials SET finished_at_ms = 1",
        "UPDATE trials SET epoch = 0",
        "UPDATE runs SET state = 'starting'",
        "UPDATE runs SET epoch = 0",
        "UPDATE runs SET trial_id = 'trl_nobody'",
        "UPDATE events SET kind = 'nothing'",
        "DELETE FROM events",
        "DELETE FROM experiments",
        "INSERT INTO runs (id, trial_id, number, state, reason, since_ms, epoch, folder, created_at_ms) "
        "SELECT 'run_second', trial_id, 9, 'starting', '', 0, epoch, 'x', 0 FROM runs",
        "INSERT INTO trials (id, experiment_id, number, kind, state, reason, since_ms, epoch, params, asked_sequence, "
        "num_retries, created_at_ms) "
        "SELECT 'trl_second', experiment_id, number, kind, state, '', 0, epoch, '{}', 0, 0, 0 FROM trials",
    ],
)
def test_database_itself_refuses(database: Database, statement: str) -> None:
    experiment_id, epoch = claimed(database)
    started(database, proposed(database, experiment_id, epoch).id, epoch)
    before = _everything(database)
    with (
        pytest.raises((IntegrityError, IllegalTransition), match=r"(?i)illegal|constraint"),
        database.transaction() as work,
    ):
        work.connection.execute(text(statement))
    assert _everything(database) == before


def test_final_states_are_final_in_the_database(database: Database) -> None:
    experiment_id, epoch = claimed(database)
    run = started(database, proposed(database, experiment_id, epoch).id, epoch)
    with database.transaction() as work:
        work.connection.execute(text("UPDATE runs SET state = 'failed'"))
    with pytest.raises(IllegalTransition, match="illegal transition in runs"), database.transaction() as work:
        work.connection.execute(text("UPDATE runs SET state = 'running'"))
    with database.read() as work:
        assert work.runs.get(run.id).state == "failed"


def test_decided_rung_cannot_be_changed(database: Database) -> None:
    experiment_id, epoch = claimed(database)
    run = started(database, proposed(database, experiment_id, epoch).id, epoch)
    with database.transaction() as work:
        work.rungs.record(run.id, epoch=epoch, rung=0, tokens=5, value=1.0, decide=None)
        work.connection.execute(text("UPDATE rungs SET decision = 'stop'"))
    for statement in ("UPDATE rungs SET decision = 'continue'", "UPDATE rungs SET value = 2"):
        with pytest.raises(IllegalTransition, match="illegal change"), database.transaction() as work:
            work.connection.execute(text(statement))


def _everything(database: Database) -> dict[str, list[Any]]:
    with database.read() as work:
        return {
            table.name: [tuple(row) for row in work.connection.execute(select(table))]
            for table in Base.metadata.sorted_tables
        }


def _words(condition: str) -> tuple[str, ...]:
    """The words of a condition, sorted: PostgreSQL gives conditions back in a form of its own."""
    found = set(re.findall(r"'(\w+)'", condition))
    return tuple(sorted(found))
