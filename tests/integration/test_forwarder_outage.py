"""MLflow behind a proxy that fails in every way: trials train and end well, and MLflow gets every point once."""

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from orchestrator.errors import TrackingUnavailable
from orchestrator.execution import processes
from orchestrator.home import logs_folder
from orchestrator.states import TrialState
from orchestrator.store.session import Database, database_url, open_database
from orchestrator.tracking.forwarder import Forwarder
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.forwarding import DOCUMENT, check_everything_is_there_once, forward_all, the_trial, train
from tests.support.services import MlflowServer, fresh_home, wait_until
from tests.support.sweeps import submit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fresh_home(tmp_path / "home")


@pytest.fixture
def database(root: Path) -> Iterator[Database]:
    opened = open_database(database_url(root))
    yield opened
    opened.close()


@pytest.fixture
def proxy(mlflow_url: str) -> Iterator[FaultyProxy]:
    address = urlsplit(mlflow_url)
    assert address.hostname is not None
    assert address.port is not None
    with FaultyProxy((address.hostname, address.port)) as made:
        yield made


def test_trial_trains_and_ends_well_while_mlflow_fails_and_is_wholly_there_afterwards(
    proxy: FaultyProxy, mlflow_server: MlflowServer, database: Database, root: Path
) -> None:
    experiment_id = submit(database, DOCUMENT)
    forwarder = Forwarder(database, root, proxy.url, timeout_s=1)
    train(database, root, experiment_id, kill_after_step=8)
    assert forwarder.round() == 1
    with proxy.failing(Fault.BLACK_HOLE):
        with pytest.raises(TrackingUnavailable):
            Forwarder(database, root, proxy.url, timeout_s=1).reopen_parents()
        train(database, root, experiment_id)
    assert the_trial(database, experiment_id).state is TrialState.COMPLETED

    faults = (Fault.REFUSE, Fault.BLACK_HOLE, Fault.ERROR, Fault.RESET, Fault.LOSE_ANSWER)
    for first, fault in enumerate(faults):
        with proxy.failing(fault, first=first), pytest.raises(TrackingUnavailable):
            forwarder.round()
        assert proxy.met[fault] > 0
    with proxy.failing(Fault.SLOW):
        assert forwarder.round() == 0
    check_everything_is_there_once(mlflow_server, database, root, experiment_id)


def test_an_answer_lost_to_any_request_leaves_one_run_and_every_point_once(
    proxy: FaultyProxy, mlflow_server: MlflowServer, database: Database, root: Path
) -> None:
    experiment_id = submit(database, DOCUMENT)
    train(database, root, experiment_id)
    for index in itertools.count():
        lost = proxy.met[Fault.LOSE_ANSWER]
        # A new one every time, as after a crash.
        forwarder = Forwarder(database, root, proxy.url)
        with proxy.failing(Fault.LOSE_ANSWER, first=index, last=index):
            try:
                forwarder.reopen_parents()
                forwarder.round()
            except TrackingUnavailable:
                continue
        assert proxy.met[Fault.LOSE_ANSWER] == lost, "an answer was lost and nobody noticed"
        break
    assert proxy.met[Fault.LOSE_ANSWER] > 10
    check_everything_is_there_once(mlflow_server, database, root, experiment_id)


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_server_that_ends_in_the_middle_of_a_trial_and_is_started_again_gets_every_point_once(
    end: str, proxy: FaultyProxy, mlflow_server: MlflowServer, database: Database, root: Path
) -> None:
    """The real one, on the same database, while it takes in points: by SIGKILL, when only its database can say what it
    has of the batch, or by SIGTERM, as whoever installs another version does it. The forwarder stays and has more."""
    experiment_id = submit(database, DOCUMENT)
    train(database, root, experiment_id)
    forwarder = Forwarder(database, root, proxy.url)
    ended: list[bytes] = []

    def end_it(request: bytes) -> None:
        if not ended and b"train/loss" in request:
            ended.append(request)
            mlflow_server.kill() if end == "kill" else mlflow_server.stop()

    proxy.on_passed = end_it
    try:
        with pytest.raises(TrackingUnavailable):
            forwarder.round()
        assert ended, "this test needs a batch of points"
        assert b"probe/saturation" not in ended[0], "there were to be more points than this batch"
        with pytest.raises(TrackingUnavailable):
            forwarder.round()
    finally:
        mlflow_server.start()
        mlflow_server.wait()
    assert forwarder.round() == 0
    check_everything_is_there_once(mlflow_server, database, root, experiment_id)


def test_forwarder_killed_in_the_middle_of_a_batch_is_replaced_without_a_trace(
    proxy: FaultyProxy, mlflow_server: MlflowServer, database: Database, root: Path
) -> None:
    experiment_id = submit(database, DOCUMENT)
    train(database, root, experiment_id)

    def start() -> "processes.subprocess.Popen[bytes]":
        return processes.start_module(
            "orchestrator.tracking.forwarder",
            [],
            log=logs_folder(root) / "forwarder.log",
            environment=processes.child_environment({"EVENLOAD_HOME": str(root), "EVENLOAD_MLFLOW_URI": proxy.url}),
        )

    # MLflow has the experiment, the runs, the params and some of the points, and this process waits to hear of them.
    with proxy.failing(Fault.HOLD_ANSWER, first=9):
        killed = start()
        wait_until(lambda: proxy.met[Fault.HOLD_ANSWER], what="a request that is not answered")
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()

    def is_finished() -> bool:
        with database.read() as work:
            tracking = work.tracking.get(the_trial(database, experiment_id).id)
        return tracking is not None and tracking.finished

    heir = start()
    try:
        wait_until(is_finished, what="the forwarder")
    finally:
        os.kill(heir.pid, signal.SIGTERM)
        heir.wait()
    # The heir may have been stopped before it closed the parent run.
    forward_all(database, root, mlflow_server.url)
    check_everything_is_there_once(mlflow_server, database, root, experiment_id)
