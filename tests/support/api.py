"""An installation without processes: a migrated database in a home of its own, and the API over it."""

import functools
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.app import create_app
from api.settings import Settings
from orchestrator.store.migrate import upgrade
from orchestrator.store.session import Database, open_database

TOKEN = "evl_a-token-of-the-tests-0123456789"
BASE_URL = "http://127.0.0.1:8080"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True, kw_only=True)
class Installation:
    """An API over an empty store."""

    home: Path
    settings: Settings
    database: Database
    app: FastAPI

    def client(self, *, headers: dict[str, str] | None = None, **options: Any) -> TestClient:
        """A client of the app that sends the token, unless other `headers` are given."""
        return TestClient(self.app, base_url=BASE_URL, headers=BEARER if headers is None else headers, **options)


@contextmanager
def installation(home: Path, *, url: str | None = None, **settings: Any) -> Iterator[Installation]:
    """An installation in the folder `home`.

    Args:
        url: of a migrated database; None makes a SQLite file in the home.
        settings: replace those of the API.
    """
    home.mkdir(parents=True, exist_ok=True)
    if url is None:
        shutil.copy(_migrated_file(), home / "evenload.db")
        url = f"sqlite:///{home / 'evenload.db'}"
    chosen = replace(Settings(home=home, database_url=url, token=TOKEN, poll_s=0.01, webui=home / "webui"), **settings)
    database = open_database(url)
    try:
        yield Installation(home=home, settings=chosen, database=database, app=create_app(chosen, database))
    finally:
        database.close()


@contextmanager
def listening(lab: Installation) -> Iterator[str]:
    """Serves the app of `lab` on a port of its own; yields the address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(lab.app, log_level="warning", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


@functools.cache
def _migrated_file() -> Path:
    """An empty database of the newest schema, made once per test process."""
    file = Path(tempfile.mkdtemp(prefix="evenload-api-tests-")) / "evenload.db"
    upgrade(f"sqlite:///{file}")
    return file
