"""The orchestrator's daemon: one loop that compares what should be with what is, and does something about it.

It starts Ray, MLflow and the forwarder, gives every experiment that needs one a driver process of its own session, and
notices when one is gone. It may be killed at any moment: drivers go on without it, and the next daemon finds them.
"""

import fcntl
import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import home as layout
from orchestrator.allocation import Verdict
from orchestrator.errors import EvenloadError
from orchestrator.execution import cluster, processes
from orchestrator.execution.analyst import Analyst
from orchestrator.execution.driver import pid_file
from orchestrator.execution.plan import (
    Action,
    Cancel,
    DriverView,
    EndDriver,
    EndService,
    ExperimentView,
    GiveUp,
    Launch,
    Pause,
    StartService,
    plan,
)
from orchestrator.execution.processes import ProcessIdentity
from orchestrator.execution.services import Services
from orchestrator.states import ExperimentState
from orchestrator.store.migrate import upgrade
from orchestrator.store.records import ExperimentRecord
from orchestrator.store.session import database_url, open_database
from orchestrator.store.work import Work

logger = logging.getLogger(__name__)

_INTERVAL_S = 0.5
_BEAT_INTERVAL_S = 5.0
_LAUNCH_TTL_S = 60.0
"""Lease of a driver that is starting; it renews it itself from then on."""
_DRIVER_GRACE_S = 14.0
"""Time for a driver to stop its runs with a checkpoint; a little more than it takes itself."""
_UNSETTLED = (
    ExperimentState.QUEUED,
    ExperimentState.RUNNING,
    ExperimentState.PAUSING,
    ExperimentState.CANCELLING,
)


class AlreadyRunning(EvenloadError):
    """Another orchestrator runs on the same home."""


@dataclass
class _Launches:
    """What is remembered of an experiment's drivers, to tell a crash loop."""

    num_fruitless: int = 0
    at: float | None = None
    progress: tuple[int, int] | None = None
    child: "subprocess.Popen[bytes] | None" = None
    lease_ended_at: float | None = None


@dataclass
class _Wishes:
    """What signals asked for."""

    stop: threading.Event = field(default_factory=threading.Event)
    at_once: threading.Event = field(default_factory=threading.Event)

    def signalled(self, *_: object) -> None:
        """First signal: stop in good order. Second: at once."""
        if self.stop.is_set():
            self.at_once.set()
        self.stop.set()


def run(root: Path, *, num_cpus: int | None = None) -> None:
    """Runs the daemon of the home `root` until SIGTERM or SIGINT, then leaves nothing running.

    Args:
        num_cpus: CPUs of the local Ray head; None: those this process may use.

    Raises:
        AlreadyRunning: there is one on this home.
        StoreUnavailable: the database cannot be migrated.
    """
    with _only_one(root):
        wishes = _Wishes()
        signal.signal(signal.SIGTERM, wishes.signalled)
        signal.signal(signal.SIGINT, wishes.signalled)
        upgrade(database_url(root))
        daemon = Daemon(root, num_cpus=num_cpus or len(os.sched_getaffinity(0)))
        daemon.begin()
        try:
            while not wishes.stop.is_set():
                daemon.step()
                wishes.stop.wait(_INTERVAL_S)
        finally:
            daemon.finish(wishes.at_once)


class Daemon:
    """The loop's body. See `run`."""

    def __init__(self, root: Path, *, num_cpus: int) -> None:
        self._root = root
        self._database = open_database(database_url(root))
        self._services = Services(self._database, root, num_cpus=num_cpus)
        self._analyst = Analyst(self._database, root)
        self._launches: dict[str, _Launches] = {}
        self._beaten_at = 0.0
        self._warm_up: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Reports for duty, takes over what is running, and has the corpora tokenised while Ray starts."""
        self._report("starting")
        self._services.adopt()
        # A trial would do it itself, if it is faster; then it is waited for by the first trials instead of nobody.
        self._warm_up = processes.start_module(
            "trainer",
            ["data", "--build-cache", "--cache", str(layout.token_cache_folder(self._root))],
            log=layout.logs_folder(self._root) / "tokenise.log",
            environment=processes.child_environment({"EVENLOAD_HOME": str(self._root)}),
        )

    def step(self) -> None:
        """One round: look, plan, act. What fails is logged and comes up again in the next round."""
        try:
            self._services.check()
            for action in plan(self._services.views(), self._experiments()):
                self._act(action)
            self._analyst.check()
            beat = time.monotonic() - self._beaten_at > _BEAT_INTERVAL_S
            if beat:
                self._beaten_at = time.monotonic()
                self._report("ready")
            self._services.report(beat=beat)
        except Exception:
            logger.exception("this round of the daemon failed")

    def finish(self, at_once: threading.Event) -> None:
        """Stops drivers with a checkpoint, then the services. Experiments carry on when a daemon starts again."""
        drivers = self._live_drivers()
        for identity in drivers:
            os.kill(identity.pid, signal.SIGTERM)
        deadline = time.monotonic() + _DRIVER_GRACE_S
        while any(map(processes.is_alive, drivers)) and time.monotonic() < deadline and not at_once.is_set():
            self._reap()
            time.sleep(0.1)
        for identity in drivers:
            processes.end_session(identity, grace_s=0)
        if self._warm_up is not None and self._warm_up.poll() is None:
            self._warm_up.kill()
            self._warm_up.wait()
        self._analyst.stop()
        self._reap()
        self._services.finish()
        self._report("stopped")
        self._database.close()

    def _experiments(self) -> list[ExperimentView]:
        self._reap()
        with self._database.read() as work:
            claimable = set(work.experiments.claimable())
            records = [record for state in _UNSETTLED for record in work.experiments.list(limit=200, state=state).items]
            progress = {record.id: _progress(work, record) for record in records}
            verdicts = work.queue.standings().verdicts
        unsettled = {record.id for record in records}
        self._launches = {
            id: launches for id, launches in self._launches.items() if id in unsettled or launches.child is not None
        }
        # Oldest first: they wait the longest.
        return [
            self._view(record, record.id in claimable, progress[record.id], verdicts.get(record.id))
            for record in reversed(records)
        ]

    def _view(
        self, record: ExperimentRecord, is_claimable: bool, progress: tuple[int, int], verdict: Verdict | None
    ) -> ExperimentView:
        launches = self._launches.setdefault(record.id, _Launches())
        if progress != launches.progress:
            launches.progress, launches.num_fruitless = progress, 0
        identity = self._driver(record.id)
        driver = None
        if identity is not None:
            epoch = json.loads(pid_file(self._root, record.id).read_text())["epoch"]
            driver = DriverView(epoch=epoch, is_alive=processes.is_alive(identity))
        if launches.child is not None and launches.child.poll() is None:
            # Started, but it has not said so itself yet.
            driver = DriverView(epoch=record.epoch, is_alive=True)
        if not is_claimable or record.lease_until_ms is None:
            launches.lease_ended_at = None
        elif launches.lease_ended_at is None:
            launches.lease_ended_at = time.monotonic()
        return ExperimentView(
            id=record.id,
            state=record.state,
            epoch=record.epoch,
            has_live_lease=not is_claimable,
            lease_ended_s=None if launches.lease_ended_at is None else time.monotonic() - launches.lease_ended_at,
            # What never fits gets a driver, which says so and fails it.
            is_admitted=verdict is None or verdict.num_starts > 0 or verdict.never,
            driver=driver,
            num_fruitless=launches.num_fruitless,
            since_launch_s=None if launches.at is None else time.monotonic() - launches.at,
        )

    def _act(self, action: Action) -> None:
        logger.info("%s", action)
        if isinstance(action, StartService):
            self._services.begin(action.name)
        elif isinstance(action, EndService):
            self._services.end(action.name)
        elif isinstance(action, EndDriver):
            identity = self._driver(action.experiment_id)
            if identity is not None:
                processes.end_session(identity, grace_s=0)
        elif isinstance(action, Launch):
            epoch = self._claim(action.experiment_id, release=action.release)
            if epoch is not None:
                self._launch(action.experiment_id, epoch)
        elif isinstance(action, Cancel):
            self._settle(action, ExperimentState.CANCELLED, "cancelled by the user")
        elif isinstance(action, Pause):
            self._settle(action, ExperimentState.PAUSED, "paused by the user")
        else:
            self._settle(action, ExperimentState.FAILED, action.reason)

    def _launch(self, experiment_id: str, epoch: int) -> None:
        launches = self._launches[experiment_id]
        launches.num_fruitless += 1
        launches.at = time.monotonic()
        launches.child = processes.start_module(
            "orchestrator.execution.driver",
            [experiment_id, "--epoch", str(epoch), "--address", self._services.ray_address],
            log=layout.logs_folder(self._root) / f"{experiment_id}.log",
            environment=cluster.ray_environment(self._root) | {"EVENLOAD_HOME": str(self._root)},
        )

    def _settle(self, action: Cancel | Pause | GiveUp, state: ExperimentState, reason: str) -> None:
        id = action.experiment_id

        def change(work: Work) -> None:
            # Claimed and settled at once: a daemon that dies in between would leave a lease that nobody renews.
            epoch = _claimed(work, id, release=action.release)
            if epoch is None:
                return
            if state is ExperimentState.PAUSED:
                work.trials.lose_runs(id, epoch=epoch, reason=reason, counts=False)
            work.experiments.settle(id, epoch=epoch, state=state, reason=reason)

        self._database.run(change)

    def _claim(self, experiment_id: str, *, release: bool) -> int | None:
        return self._database.run(lambda work: _claimed(work, experiment_id, release=release))

    def _driver(self, experiment_id: str) -> ProcessIdentity | None:
        """The driver that last said it was there, alive or not."""
        try:
            said = json.loads(pid_file(self._root, experiment_id).read_text())
        except FileNotFoundError:
            return None
        return ProcessIdentity(said["pid"], said["started_at_s"])

    def _live_drivers(self) -> set[ProcessIdentity]:
        """Every driver on this host: those that said so, and those that were launched and have not yet."""
        folder = self._root / "experiments"
        said = [self._driver(path.name) for path in folder.iterdir()] if folder.is_dir() else []
        launched = [
            processes.identify(launches.child.pid)
            for launches in self._launches.values()
            if launches.child is not None and launches.child.poll() is None
        ]
        return {identity for identity in (*said, *launched) if identity is not None and processes.is_alive(identity)}

    def _reap(self) -> None:
        for launches in self._launches.values():
            if launches.child is not None and launches.child.poll() is not None:
                launches.child = None
        if self._warm_up is not None and self._warm_up.poll() is not None:
            self._warm_up = None

    def _report(self, state: str) -> None:
        self._database.run(lambda work: work.services.report("orchestrator", state=state, pid=os.getpid(), detail={}))


def _claimed(work: Work, experiment_id: str, *, release: bool) -> int | None:
    """The epoch under which this daemon has the experiment now; None if it needs nobody (any more)."""
    if release:
        work.experiments.release(experiment_id, epoch=work.experiments.get(experiment_id).epoch)
    owner = f"{os.uname().nodename} pid {os.getpid()}"
    return work.experiments.claim(experiment_id, owner=owner, ttl_s=_LAUNCH_TTL_S)


def _progress(work: Work, record: ExperimentRecord) -> tuple[int, int]:
    """Grows when the experiment gets on: what happened in it, and how far its open trials are saved."""
    if record.state is ExperimentState.QUEUED:
        return (0, 0)
    newest = (work.checkpoints.newest(trial.id) for trial in work.trials.unsettled(record.id))
    return (record.sequence, sum(checkpoint.tokens for checkpoint in newest if checkpoint is not None))


@contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """Holds the home's lock; the system lets go of it when the process ends, however it does."""
    path = root / "orchestrator.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise AlreadyRunning(
                f"an orchestrator (pid {file.read().strip() or 'unknown'}) already runs on {root}; "
                "stop it first, or set EVENLOAD_HOME to another folder"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
