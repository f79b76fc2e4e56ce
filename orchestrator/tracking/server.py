"""The MLflow server of a local installation: one worker on a SQLite file, reachable from this machine only.

Nothing waits for it. Training writes files, the dashboard reads our own database, and the forwarder tries again for
as long as the server is away. EVENLOAD_MLFLOW_URI names another server, which is then neither started nor stopped
here.
"""

import http.client
import os
import socket
import sqlite3
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from orchestrator import home as layout
from orchestrator.execution import processes
from orchestrator.execution.processes import ProcessIdentity

_HEALTH_TIMEOUT_S = 1.0
_STOP_GRACE_S = 3.0
_NICENESS = 10


def external_uri() -> str | None:
    """The tracking URI of a server that is not ours to run, or None."""
    return os.environ.get("EVENLOAD_MLFLOW_URI") or None


def start_server(root: Path, *, port: int | None = None) -> tuple[ProcessIdentity, str, "subprocess.Popen[bytes]"]:
    """Starts the server of the home `root` on `port`, or a free one.

    Returns its identity, its URL, and the child to reap. It answers some seconds later: see `is_healthy`.
    """
    folder = layout.mlflow_folder(root)
    artifacts = folder / "artifacts"
    artifacts.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = folder / "mlflow.db"
    # The journal mode is kept in the file. MLflow does not set it; without it readers and the writer block each other.
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    port = port or _free_port()
    child = processes.start_module(
        "mlflow",
        [
            "server",
            f"--backend-store-uri=sqlite:///{database}",
            f"--artifacts-destination={artifacts}",
            "--host=127.0.0.1",
            f"--port={port}",
            "--workers=1",
            f"--allowed-hosts=127.0.0.1:{port},localhost:{port}",
        ],
        log=layout.logs_folder(root) / "mlflow.log",
        environment=processes.child_environment(
            {
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "DO_NOT_TRACK": "true",
            }
        ),
    )
    # Training goes first where they share a processor; workers that it starts inherit this.
    psutil.Process(child.pid).nice(_NICENESS)
    identity = processes.identify(child.pid)
    assert identity is not None, "a child that was not waited for has a pid"
    return identity, f"http://127.0.0.1:{port}", child


def stop_server(identity: ProcessIdentity) -> None:
    """Ends the server and its worker."""
    processes.end_session(identity, grace_s=_STOP_GRACE_S)


def is_healthy(url: str) -> bool:
    """True if an MLflow server answers at `url`, within a second."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=_HEALTH_TIMEOUT_S) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError, http.client.HTTPException):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
