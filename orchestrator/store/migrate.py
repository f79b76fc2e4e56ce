"""Bringing a database's schema up to date. Whoever starts first does it; others wait, then find it done."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from orchestrator.store.session import make_engine, translated

# Any number that nothing else in the database locks.
_MIGRATION_LOCK = 0x65766D


def upgrade(url: str) -> None:
    """Migrates the database at `url` to the newest schema, in one transaction, under a lock.

    Raises:
        StoreUnavailable: the database does not answer or another process holds it; nothing was changed.
    """
    engine = make_engine(url)
    try:
        # SQLite: BEGIN IMMEDIATE, which every write transaction is, is the lock.
        with translated(), engine.connect() as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            command.upgrade(_config(connection), "head")
    finally:
        engine.dispose()


def schema_revision(connection: Connection) -> str | None:
    """The revision of the connected database's schema, None if it has none."""
    return MigrationContext.configure(connection).get_current_revision()


def head_revision() -> str:
    """The revision that this code needs."""
    head = ScriptDirectory.from_config(_config(None)).get_current_head()
    assert head is not None
    return head


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", (Path(__file__).parent / "migrations").as_posix())
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
