"""Fixtures for tests against real databases: every test that takes `database_url` runs on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store.migrate import upgrade
from orchestrator.store.session import Database, open_database
from tests.support import postgres
from tests.support.services import installation, mlflow_server, mlflow_url, ray_head
from tests.support.stores import FakeLeaseClock

__all__ = ["installation", "mlflow_server", "mlflow_url", "ray_head"]  # fixtures


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The socket folder of a PostgreSQL server of this test session's own."""
    binaries = postgres.find_binaries()
    if binaries is None:
        pytest.skip(postgres.MISSING)
    with postgres.cluster(binaries) as socket_folder:
        yield socket_folder


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without a single table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'evenload.db'}"
        return
    with postgres.database(request.getfixturevalue("postgres_server")) as url:
        yield url


@pytest.fixture
def database_url(empty_database_url: str) -> str:
    """The URL of a migrated database."""
    upgrade(empty_database_url)
    return empty_database_url


@pytest.fixture
def lease_clock() -> FakeLeaseClock:
    """The clock of the leases in `database`."""
    return FakeLeaseClock()


@pytest.fixture
def database(database_url: str, lease_clock: FakeLeaseClock) -> Iterator[Database]:
    """A migrated database whose leases run by `lease_clock`."""
    opened = open_database(database_url, lease_time=lease_clock)
    yield opened
    opened.close()
