"""Database: connections and transactions on SQLite or PostgreSQL.

Writers take turns: on SQLite by BEGIN IMMEDIATE (no read that is upgraded to a write, so no deadlock), on PostgreSQL by
locking the experiment's row first. A commit that returned is on disk (`synchronous=FULL`).
"""

import json
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from orchestrator.errors import IllegalTransition, StoreUnavailable
from orchestrator.home import database_path
from orchestrator.store.clock import Clock, IdSource, LeaseTime, host_lease_time, now_ms
from orchestrator.store.work import Work

T = TypeVar("T")

_BUSY_TIMEOUT_MS = 5000
_MAX_ATTEMPTS = 5
_RETRYABLE = {"40001", "40P01", "55P03"}  # serialisation failure, deadlock, lock not available
_POSTGRES_OPTIONS = "-c statement_timeout=5000 -c lock_timeout=2000 -c idle_in_transaction_session_timeout=10000"


def database_url(root: Path) -> str:
    """The URL of the installation's database: EVENLOAD_DATABASE_URL, else the SQLite file of the home `root`."""
    return os.environ.get("EVENLOAD_DATABASE_URL") or f"sqlite:///{database_path(root)}"


def open_database(
    url: str,
    *,
    clock: Clock = now_ms,
    lease_time: Callable[[], LeaseTime] | None = None,
) -> "Database":
    """The database at `url` (`sqlite:///FILE` or `postgresql+psycopg://...`), which `migrate.upgrade` has brought up.

    Nothing is connected yet. Open it after a fork, not before.

    Args:
        clock: stamps the rows.
        lease_time: the clock of leases; by default the host's on SQLite and the server's on PostgreSQL.
    """
    return Database(make_engine(url), clock=clock, lease_time=lease_time)


def make_engine(url: str) -> Engine:
    """An engine with this module's settings; raises ValueError for other databases than the two."""
    parsed = make_url(url)
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        return _sqlite_engine(url)
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            pool_timeout=5,
            json_serializer=_to_json,
            connect_args={"connect_timeout": 5, "options": _POSTGRES_OPTIONS, "application_name": "evenload"},
        )
    raise ValueError(
        f"no support for databases of kind {parsed.drivername!r}; use sqlite:///FILE or postgresql+psycopg://..."
    )


class Database:
    """Hands out units of work. Safe to share between threads, not between processes."""

    def __init__(
        self, engine: Engine, *, clock: Clock = now_ms, lease_time: Callable[[], LeaseTime] | None = None
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._lease_time = lease_time
        self._ids = IdSource(clock)

    @contextmanager
    def transaction(self) -> Iterator[Work]:
        """A unit of work that may write: committed at the end of the block, rolled back if it raises.

        Raises:
            StoreUnavailable: the database cannot be reached, is locked, full or read-only; nothing was written.
        """
        with translated(), self._engine.connect() as connection, connection.begin():
            work = self._work(connection)
            yield work
            work.flush()

    @contextmanager
    def read(self) -> Iterator[Work]:
        """A unit of work that only reads, from one consistent state, without waiting for writers."""
        with translated(), self._engine.connect() as plain:
            connection = plain.execution_options(evenload_read_only=True)
            if connection.dialect.name == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield self._work(connection)

    def run(self, function: Callable[[Work], T]) -> T:
        """Calls `function` in a transaction of its own and returns its result; again, if others were in the way.

        `function` may be called up to five times, each time in a fresh transaction, so it changes nothing but through
        its Work.
        """
        for attempt in range(_MAX_ATTEMPTS):
            try:
                with self.transaction() as work:
                    return function(work)
            except StoreUnavailable as error:
                if attempt + 1 == _MAX_ATTEMPTS or not _is_conflict(error.__cause__):
                    raise
                time.sleep(random.uniform(0, 0.02 * 2**attempt))
        raise AssertionError("unreachable")

    @property
    def engine(self) -> Engine:
        """What connects, for those who count or watch its statements."""
        return self._engine

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    def _work(self, connection: Connection) -> Work:
        return Work(connection, clock=self._clock, lease_time=self._lease_clock_of(connection), ids=self._ids)

    def _lease_clock_of(self, connection: Connection) -> Callable[[], LeaseTime]:
        if self._lease_time is not None:
            return self._lease_time
        if connection.dialect.name != "postgresql":
            return host_lease_time

        def server_time() -> LeaseTime:
            ms = connection.execute(text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")).scalar_one()
            return LeaseTime("postgresql", ms)

        return server_time


def _sqlite_engine(url: str) -> Engine:
    engine = create_engine(
        url,
        pool_timeout=5,
        json_serializer=_to_json,
        connect_args={"check_same_thread": False, "timeout": _BUSY_TIMEOUT_MS / 1000},
    )

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _: Any) -> None:
        # Transactions are begun by us, below; the driver would begin them too late, and not IMMEDIATE.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}").close()
        _enter_wal(connection)
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("evenload_read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _enter_wal(connection: sqlite3.Connection) -> None:
    """Puts the database into WAL mode, where it stays for good.

    Several processes that open a new file at once all try; SQLite's busy timeout does not hold for this change of mode,
    those that come second are told "locked" at once. So the waiting is done here.
    """
    deadline_s = time.monotonic() + _BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
            time.sleep(random.uniform(0.005, 0.02))


def _to_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


@contextmanager
def translated() -> Iterator[None]:
    """Turns what the driver raises into our errors."""
    try:
        yield
    except IntegrityError as error:
        if "evenload: illegal" in str(error.orig):
            raise IllegalTransition(str(error.orig).splitlines()[0]) from error
        raise
    except PoolTimeoutError as error:
        raise _unavailable(error) from error
    except OperationalError as error:
        # SQLite's generic error (1) is a wrong statement, e.g. a missing table, and not a database in trouble.
        if getattr(error.orig, "sqlite_errorcode", None) == 1:
            raise
        raise _unavailable(error) from error
    except DBAPIError as error:
        if error.connection_invalidated or _sqlstate(error)[:2] in ("08", "53", "57", "58"):
            raise _unavailable(error) from error
        raise


def _unavailable(error: Exception) -> StoreUnavailable:
    cause = getattr(error, "orig", None) or error
    return StoreUnavailable(f"the database does not answer ({str(cause).splitlines()[0][:200]}); nothing was written")


def _sqlstate(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", None) or "")


def _is_conflict(error: BaseException | None) -> bool:
    return isinstance(error, DBAPIError) and (_sqlstate(error) in _RETRYABLE or "database is locked" in str(error.orig))
