"""A database in trouble: said as StoreUnavailable, nothing half-written, and working again once the trouble is over."""

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from orchestrator.errors import StoreUnavailable
from orchestrator.store.migrate import upgrade
from orchestrator.store.session import Database, database_url, make_engine, open_database
from orchestrator.store.work import Work
from tests.support import postgres
from tests.support.specs import experiment_document, experiment_spec
from tests.support.stores import submitted


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Path:
    """A migrated SQLite file."""
    file = tmp_path / "evenload.db"
    upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture
def postgres_database(postgres_server: str) -> Iterator[str]:
    """The URL of a migrated PostgreSQL database."""
    with postgres.database(postgres_server) as url:
        upgrade(url)
        yield url


def test_sqlite_runs_with_wal_full_sync_and_foreign_keys(sqlite_file: Path) -> None:
    engine = make_engine(f"sqlite:///{sqlite_file}")
    with engine.connect() as connection:
        settings = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    engine.dispose()
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}


def test_reading_goes_on_beside_a_writer_and_sees_one_state(sqlite_file: Path) -> None:
    database = open_database(f"sqlite:///{sqlite_file}")
    submitted(database)
    with database.read() as reader:
        before = reader.experiments.list()
        submitted(database)
        assert reader.experiments.list() == before
    with database.read() as reader:
        assert len(reader.experiments.list().items) == 2
    database.close()


def test_locked_file_is_unavailable_and_takes_the_write_afterwards(
    sqlite_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.store.session._BUSY_TIMEOUT_MS", 10)
    database = open_database(f"sqlite:///{sqlite_file}")
    other = sqlite3.connect(sqlite_file)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        submitted(database)
    other.rollback()
    other.close()
    submitted(database)
    database.close()


def test_run_waits_for_a_lock_to_go(sqlite_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.store.session._BUSY_TIMEOUT_MS", 1)
    database = open_database(f"sqlite:///{sqlite_file}")
    other = sqlite3.connect(sqlite_file, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            other.rollback()

    monkeypatch.setattr("orchestrator.store.session.time.sleep", pause)
    database.run(lambda work: work.experiments.submit(experiment_spec(), document=experiment_document()))
    assert len(pauses) == 2
    other.close()
    database.close()


def test_full_disk_is_unavailable_and_writes_nothing(sqlite_file: Path) -> None:
    database = open_database(f"sqlite:///{sqlite_file}")
    with database.transaction() as work:
        num_pages = work.connection.execute(text("PRAGMA page_count")).scalar_one()
        work.connection.execute(text(f"PRAGMA max_page_count = {num_pages}"))
    with pytest.raises(StoreUnavailable, match="full"):
        # Long enough to need pages of its own.
        [submitted(database, description="x" * 9000) for _ in range(50)]
    with database.transaction() as work:
        written = len(work.experiments.list().items)
        work.connection.execute(text("PRAGMA max_page_count = 1000000"))
        assert work.events.last_id() == written
        assert work.connection.execute(text("PRAGMA integrity_check")).scalar_one() == "ok"
    submitted(database)
    database.close()


def test_read_only_file_is_unavailable_for_writing_but_read(sqlite_file: Path) -> None:
    writable = open_database(f"sqlite:///{sqlite_file}")
    submitted(writable)
    writable.close()
    database = open_database(f"sqlite:///file:{sqlite_file}?mode=ro&uri=true")
    with pytest.raises(StoreUnavailable, match="readonly"):
        submitted(database)
    with database.read() as work:
        assert len(work.experiments.list().items) == 1
    database.close()


def test_missing_folder_is_unavailable(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'missing' / 'evenload.db'}")
    with pytest.raises(StoreUnavailable, match="unable to open"):
        submitted(database)
    database.close()


@pytest.mark.postgres
def test_dropped_connections_are_unavailable_once_then_replaced(postgres_database: str) -> None:
    database = open_database(postgres_database)

    def drop_own_connection(work: Work) -> None:
        work.connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(StoreUnavailable), database.transaction() as work:
        drop_own_connection(work)
    submitted(database)
    database.close()


@pytest.mark.postgres
def test_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    database = open_database(f"postgresql+psycopg://nobody@/nothing?host={tmp_path}")
    with pytest.raises(StoreUnavailable, match="does not answer"):
        submitted(database)
    database.close()


@pytest.mark.postgres
def test_deadlock_is_tried_again(postgres_database: str) -> None:
    database = open_database(postgres_database)
    first, second = submitted(database), submitted(database)
    both_hold_one = threading.Barrier(2, timeout=30)
    attempts: list[str] = []

    def lock_both(ids: tuple[str, str]) -> None:
        def in_order(work: Work) -> None:
            attempts.append(ids[0])
            work.experiments.set_mlflow_experiment(ids[0], "m")
            if attempts.count(ids[0]) == 1:
                both_hold_one.wait()
            work.experiments.set_mlflow_experiment(ids[1], "m")

        database.run(in_order)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lock_both, [(first, second), (second, first)]))
    assert len(attempts) > 2
    database.close()


def test_url_of_the_database_is_the_homes_file_unless_the_environment_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVENLOAD_DATABASE_URL", raising=False)
    assert make_url(database_url(tmp_path)).database == str(tmp_path / "evenload.db")
    monkeypatch.setenv("EVENLOAD_DATABASE_URL", "postgresql://u@h/d")
    assert database_url(tmp_path) == "postgresql://u@h/d"


def test_other_kinds_of_database_are_refused() -> None:
    with pytest.raises(ValueError, match="use sqlite:///FILE or postgresql"):
        Database(make_engine("mysql://u@h/d"))
