"""Real services for tests: one Ray head and one MLflow server per test session, and homes that share a token cache."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from orchestrator.execution import cluster, processes
from orchestrator.execution.cluster import Head
from orchestrator.home import logs_folder, mlflow_folder, token_cache_folder
from orchestrator.store.migrate import upgrade
from orchestrator.store.session import Database, database_url, open_database
from orchestrator.tracking import server
from tests.support.sweeps import submit
from trainer.data.shards import default_cache_dir

PATIENCE_S = 240.0
"""Far more than anything takes on an idle machine: tests wait for events, not for times."""


def wait_until(condition: Callable[[], Any], *, patience_s: float = PATIENCE_S, what: str = "") -> Any:
    """Waits until `condition` is true and returns its value; fails the test after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {patience_s:.0f} s in vain: {what or condition}")
        time.sleep(0.05)
    return value


@dataclass
class Installation:
    """A home with a migrated database, and drivers started on it as the daemon would.

    Attributes:
        root: the home folder.
        database: open.
        head: the Ray head its drivers use; it has a home of its own.
        ray_root: that home.
    """

    root: Path
    database: Database
    head: Head
    ray_root: Path
    drivers: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def submit(self, document: dict[str, Any]) -> str:
        """Queues an experiment and returns its id."""
        return submit(self.database, document)

    def start_driver(self, experiment_id: str) -> "subprocess.Popen[bytes]":
        """Claims the experiment, from a dead driver too, and starts a driver process."""
        with self.database.transaction() as work:
            epoch = work.experiments.get(experiment_id).epoch
            if epoch:
                work.experiments.release(experiment_id, epoch=epoch)
            claimed = work.experiments.claim(experiment_id, owner="test", ttl_s=60)
        address = self.head.address()
        assert claimed is not None
        assert address is not None
        child = processes.start_module(
            "orchestrator.execution.driver",
            [experiment_id, "--epoch", str(claimed), "--address", address],
            log=self.log(experiment_id),
            environment=cluster.ray_environment(self.ray_root) | {"EVENLOAD_HOME": str(self.root)},
        )
        self.drivers.append(child)
        return child

    def drive(self, experiment_id: str) -> None:
        """Runs a driver to its end."""
        self.finish(self.start_driver(experiment_id), experiment_id)

    def finish(self, driver: "subprocess.Popen[bytes]", experiment_id: str) -> None:
        """Waits for a driver's end and checks that it ended well."""
        status = wait_until(lambda: None if driver.poll() is None else [driver.returncode], what="the driver's end")
        assert status == [0], self.log(experiment_id).read_text()[-4000:]

    def log(self, experiment_id: str) -> Path:
        """The log of the experiment's drivers."""
        return logs_folder(self.root) / f"{experiment_id}.log"

    def workers(self) -> list[psutil.Process]:
        """The processes on the head that run trials now."""
        found = []
        for process in processes.session_members(self.head.identity):
            try:
                title = " ".join(process.cmdline())
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if title.startswith("ray::") and ("ImplicitFunc" in title or "RayTrainWorker" in title):
                found.append(process)
        return found

    def events(self, experiment_id: str, kind: str) -> list[Any]:
        """The experiment's events of one kind, in order."""
        with self.database.read() as work:
            return [event for event in work.events.after(0, experiment_id=experiment_id) if event.kind == kind]


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Head, Path]]:
    """A Ray head of two CPUs for the tests of a file, with the home that holds its token.

    Not for all of them: a head has been seen to keep a CPU for itself when a driver ends while it makes room for it.
    """
    root = tmp_path_factory.mktemp("ray")
    head, child = cluster.start_head(root, num_cpus=2)
    try:
        wait_until(head.address, what="the Ray head")
        yield head, root
    finally:
        cluster.stop_head(root, head)
        child.wait()


@pytest.fixture
def installation(ray_head: tuple[Head, Path], tmp_path: Path) -> Iterator[Installation]:
    """A fresh home on the file's Ray head."""
    root = fresh_home(tmp_path / "home")
    database = open_database(database_url(root))
    made = Installation(root=root, database=database, head=ray_head[0], ray_root=ray_head[1])
    try:
        yield made
    finally:
        for driver in made.drivers:
            if driver.poll() is None:
                os.kill(driver.pid, signal.SIGKILL)
                driver.wait()
        database.close()


class MlflowServer:
    """An MLflow server that runs, and can be killed and started again on the same port and files.

    Args:
        root: the home it is the server of.

    Attributes:
        url: where it answers, or did before it was killed.
        database: the SQLite file that it keeps.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.database = mlflow_folder(root) / "mlflow.db"
        self._identity, self.url, self._child = server.start_server(root)

    def wait(self) -> None:
        """Waits until it answers."""
        wait_until(lambda: server.is_healthy(self.url), what="MLflow")

    def kill(self) -> None:
        """Kills every process of it, whatever it is doing; they are gone when this returns."""
        for process in processes.session_members(self._identity):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.stop()

    def start(self) -> None:
        """Starts it again."""
        self._identity, self.url, self._child = server.start_server(self._root, port=urlsplit(self.url).port)

    def stop(self) -> None:
        """Ends it in good order."""
        server.stop_server(self._identity)
        self._child.wait()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server for the whole session. Whoever kills it starts it again."""
    started = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    try:
        started.wait()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def mlflow_url(mlflow_server: MlflowServer) -> str:
    """Where the session's MLflow server is."""
    return mlflow_server.url


def fresh_home(root: Path) -> Path:
    """Makes a home with a migrated database and the token cache that all tests of this process share."""
    root.mkdir(parents=True)
    shared = default_cache_dir()
    shared.mkdir(parents=True, exist_ok=True)
    token_cache_folder(root).parent.mkdir(parents=True)
    token_cache_folder(root).symlink_to(shared, target_is_directory=True)
    upgrade(database_url(root))
    return root
