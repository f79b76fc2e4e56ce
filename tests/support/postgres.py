"""A real PostgreSQL server for the tests: a throw-away cluster on a socket in a temporary folder.

PostgreSQL refuses to run as root, so as root it is started as the user `postgres` (or `nobody`).
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

BINARIES = ("initdb", "pg_ctl", "postgres")
MISSING = "PostgreSQL's server binaries (initdb, pg_ctl, postgres) are neither on PATH nor in /usr/lib/postgresql/*/bin"


def find_binaries() -> Path | None:
    """The folder with PostgreSQL's server binaries, the newest version's if there are several; None without any."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).parent] if on_path else []
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(installed, key=lambda folder: float(folder.parent.name), reverse=True)
    return next((folder for folder in folders if all((folder / name).exists() for name in BINARIES)), None)


@contextmanager
def cluster(binaries: Path) -> Iterator[str]:
    """Starts a cluster and yields the socket folder to connect to; stops it and deletes it at the end."""
    # Not pytest's tmp_path: a socket's path may have 107 characters, and other users must be able to enter the folder.
    root = Path(tempfile.mkdtemp(prefix="evenload-pg-"))
    user = _user()
    data = root / "data"
    try:
        if user is not None:
            os.chown(root, user["user"], user["group"])
        _run(binaries / "initdb", "-D", data, "-U", "evenload", "-A", "trust", "-E", "UTF8", "--no-sync", user=user)
        # Durability is not what these tests are about, and the shared machine's disk is slow.
        options = f"-k {root} -c listen_addresses='' -c fsync=off -c max_connections=60 -c shared_buffers=16MB"
        _run(binaries / "pg_ctl", "-D", data, "-l", root / "log", "-w", "-t", "60", "-o", options, "start", user=user)
        try:
            yield root.as_posix()
        finally:
            _run(binaries / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop", user=user)
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def database(socket_folder: str) -> Iterator[str]:
    """Creates an empty database and yields its URL; drops it at the end."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(host=socket_folder, user="evenload", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]  # a name of our own making
        yield f"postgresql+psycopg://evenload@/{name}?host={socket_folder}"
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]


def _user() -> dict[str, int] | None:
    """Whom to run the server as: nobody in particular, or, for root, a user that is not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid}
    raise RuntimeError("running as root, and there is neither a user postgres nor nobody to run PostgreSQL as")


def _run(*command: Any, user: dict[str, int] | None) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        cwd="/",
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
        # pg_ctl's server keeps the pipe of its output open, so output goes to a file descriptor nobody reads.
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=120,
        extra_groups=[] if user else None,
        **(user or {}),  # type: ignore[arg-type]
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(str(part) for part in command)} ended with {done.returncode}")
