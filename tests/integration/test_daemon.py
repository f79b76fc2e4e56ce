"""The daemon as a process, with a Ray head and an MLflow server of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.execution import processes
from orchestrator.execution.processes import ProcessIdentity
from orchestrator.states import ExperimentState
from orchestrator.store.records import ServiceRecord
from orchestrator.store.session import Database, database_url, open_database
from tests.support.services import fresh_home, wait_until
from tests.support.sweeps import submit, sweep_document
from tests.support.training import STEP_TOKENS

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(290)]


class Daemons:
    """Daemons of one home, one after the other."""

    def __init__(self, root: Path, database: Database) -> None:
        self.root = root
        self.database = database
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self) -> "subprocess.Popen[bytes]":
        """Starts a daemon in a session of its own."""
        environment = processes.child_environment({"EVENLOAD_HOME": str(self.root)})
        environment.pop("RAY_ADDRESS", None)
        environment.pop("EVENLOAD_MLFLOW_URI", None)
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


def processes_of(root: Path) -> Iterator[int]:
    """Pids of the drivers that work on a home."""
    for said in root.glob("experiments/*/driver.json"):
        driver = json.loads(said.read_text())
        # A driver whose daemon was killed is nobody's child: where nothing reaps such, it stays as a zombie.
        if processes.is_alive(ProcessIdentity(driver["pid"], driver["started_at_s"])):
            yield driver["pid"]
