"""The daemon as a process, with a Ray head and an MLflow server of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.execution import cluster, processes
from orchestrator.execution.cluster import Head
from orchestrator.execution.processes import ProcessIdentity
from orchestrator.home import logs_folder
from orchestrator.states import ExperimentState
from orchestrator.store.migrate import upgrade
from orchestrator.store.records import ServiceRecord
from orchestrator.store.session import Database, database_url, open_database
from tests.support import postgres
from tests.support.services import fresh_home, wait_until
from tests.support.sweeps import submit, sweep_document
from tests.support.training import STEP_TOKENS

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(290)]

_NOBODY = "http://127.0.0.1:9"


class Daemons:
    """Daemons of one home, one after the other."""

    def __init__(self, root: Path, database: Database) -> None:
        self.root = root
        self.database = database
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self, **settings: str) -> "subprocess.Popen[bytes]":
        """Starts a daemon in a session of its own, with further settings in its environment."""
        environment = processes.child_environment({"EVENLOAD_HOME": str(self.root)})
        environment.pop("RAY_ADDRESS", None)
        environment.pop("EVENLOAD_MLFLOW_URI", None)
        environment |= settings
        child = processes.start_module(
            "orchestrator", ["--num-cpus", "2"], log=self.root / "daemon.log", environment=environment
        )
        self.children.append(child)
        return child

    def service(self, name: str) -> ServiceRecord | None:
        """What is known of a service."""
        with self.database.read() as work:
            return work.services.get(name)

    def wait_ready(self, *names: str) -> list[ServiceRecord]:
        """Waits until services are ready and returns their rows."""
        return [
            wait_until(
                lambda name=name: (row := self.service(name)) is not None and row.state == "ready" and row, what=name
            )
            for name in names
        ]

    def state(self, experiment_id: str) -> ExperimentState:
        """The experiment's state."""
        with self.database.read() as work:
            return work.experiments.get(experiment_id).state

    def events(self, experiment_id: str, kind: str) -> int:
        """How many events of a kind there are."""
        with self.database.read() as work:
            return sum(event.kind == kind for event in work.events.after(0, experiment_id=experiment_id))


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    root = fresh_home(tmp_path / "home")
    database = open_database(database_url(root))
    made = Daemons(root, database)
    try:
        yield made
    finally:
        for child in made.children:
            if child.poll() is None:
                os.kill(child.pid, signal.SIGTERM)
                child.wait(60)
        database.close()


def identity(record: ServiceRecord) -> ProcessIdentity:
    """The process behind a service's row."""
    assert record.pid is not None
    return ProcessIdentity(record.pid, record.detail["started_at_s"])


def test_I8_daemon_killed_adopts_what_it_left_and_stops_leaving_nothing(daemons: Daemons) -> None:
    first = daemons.start()
    ray, mlflow = daemons.wait_ready("ray", "mlflow")
    assert ray.detail["nodes"][0]["cpus"] == 2
    second = subprocess.run(
        [sys.executable, "-m", "orchestrator", "--home", str(daemons.root)], capture_output=True, text=True, timeout=100
    )
    assert second.returncode == 1
    assert f"pid {first.pid}" in second.stderr
    assert "already runs" in second.stderr

    # One trial of many seconds, so that it is still there when the daemon stops.
    document = sweep_document(
        num_trials=1,
        num_steps=50_000,
        scheduler={"kind": "none"},
        base={"loop": {"checkpoint_every_tokens": 50 * STEP_TOKENS}},
    )
    experiment_id = submit(daemons.database, document)
    wait_until(lambda: daemons.events(experiment_id, "checkpoint.committed"), what="a checkpoint")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    committed = daemons.events(experiment_id, "checkpoint.committed")
    wait_until(
        lambda: daemons.events(experiment_id, "checkpoint.committed") > committed,
        what="training that goes on without a daemon",
    )

    again = daemons.start()
    row = wait_until(lambda: (row := daemons.service("orchestrator")) and row.pid == again.pid and row, what="adoption")
    assert row.state in ("starting", "ready")
    daemons.wait_ready("orchestrator", "ray", "mlflow")
    adopted = daemons.wait_ready("ray", "mlflow")
    assert [record.pid for record in adopted] == [ray.pid, mlflow.pid]
    assert daemons.events(experiment_id, "experiment.takeover") == 0, "its driver lives, so nobody takes it over"

    forwarder = daemons.service("forwarder")
    assert forwarder is not None
    os.kill(again.pid, signal.SIGTERM)
    assert again.wait(60) == 0
    for record in (ray, mlflow, forwarder):
        assert not processes.session_members(identity(record)), f"{record.name} left processes"
    assert not list(processes_of(daemons.root)), "a driver is left"
    assert daemons.state(experiment_id) is ExperimentState.RUNNING
    with daemons.database.read() as work:
        (trial,) = work.trials.history(experiment_id)
        assert not work.runs.live(experiment_id)
        assert work.checkpoints.newest(trial.id) is not None
        assert work.experiments.claimable() == (experiment_id,)
        work_state = {name: record.state for name in ("ray", "mlflow") if (record := work.services.get(name))}
    assert work_state == {"ray": "stopped", "mlflow": "stopped"}

    # Running it again carries on; a cancel is carried out by the driver.
    last = daemons.start()
    wait_until(lambda: daemons.events(experiment_id, "experiment.takeover") == 1, what="the next driver")
    with daemons.database.transaction() as work:
        work.experiments.request_cancel(experiment_id)
    wait_until(lambda: daemons.state(experiment_id) is ExperimentState.CANCELLED, what="the cancel")
    os.kill(last.pid, signal.SIGTERM)
    assert last.wait(60) == 0


def test_I8_an_existing_cluster_and_database_are_used_by_their_urls_alone_and_left_as_they_are(
    daemons: Daemons, ray_head: tuple[Head, Path], postgres_server: str
) -> None:
    head, ray_root = ray_head
    token = cluster.ray_environment(ray_root)["RAY_AUTH_TOKEN_PATH"]
    address = head.address()
    assert address is not None
    with postgres.database(postgres_server) as url:
        upgrade(url)
        daemons.database.close()
        daemons.database = open_database(url)
        experiment_id = submit(daemons.database, sweep_document(num_trials=2, num_steps=4, scheduler={"kind": "none"}))
        daemon = daemons.start(
            RAY_ADDRESS=address,
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN_PATH=token,
            EVENLOAD_DATABASE_URL=url,
            EVENLOAD_MLFLOW_URI=_NOBODY,
        )
        wait_until(lambda: daemons.state(experiment_id) is ExperimentState.COMPLETED, what="the sweep")
        ray, mlflow = daemons.service("ray"), daemons.service("mlflow")
        assert ray is not None
        assert mlflow is not None
        assert (ray.url, ray.state, mlflow.url) == (address, "ready", _NOBODY)
        assert mlflow.state != "ready"
        os.kill(daemon.pid, signal.SIGTERM)
        assert daemon.wait(60) == 0
        daemons.database.close()
    assert processes.is_alive(head.identity), "the head is not ours"
    assert not list(processes_of(daemons.root)), "a driver is left"
    assert not {"ray.log", "mlflow.log"} & {path.name for path in logs_folder(daemons.root).iterdir()}
    assert not (daemons.root / "evenload.db-wal").exists(), "something opened the file of the home"


def processes_of(root: Path) -> Iterator[int]:
    """Pids of the drivers that work on a home."""
    for said in root.glob("experiments/*/driver.json"):
        driver = json.loads(said.read_text())
        # A driver whose daemon was killed is nobody's child: where nothing reaps such, it stays as a zombie.
        if processes.is_alive(ProcessIdentity(driver["pid"], driver["started_at_s"])):
            yield driver["pid"]
