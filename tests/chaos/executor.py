"""Kills of daemon, driver, trials and Ray head while sweeps run: nothing is lost, decided again or run twice."""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet

from orchestrator.execution import processes
from orchestrator.execution.checkpoints import is_whole
from orchestrator.execution.processes import ProcessIdentity
from orchestrator.states import ExperimentState, TrialState, is_terminal
from orchestrator.store.session import Database, database_url, open_database
from tests.chaos.nursery import Nursery
from tests.chaos.report import Report
from tests.support.history import History, read_history, violations
from tests.support.lab import processes_of
from tests.support.services import fresh_home
from tests.support.sweeps import submit, sweep_document, table

NUM_STEPS = 24
_AT_ONCE = 2
_ORPHAN_S = 30.0
_PATIENCE_S = 300.0
_MAX_FRUITLESS = 2
"""The daemon gives an experiment up whose drivers end five times without getting on; a kill is not to be blamed."""


def sweep(*, synchronous: bool) -> dict[str, Any]:
    """A sweep of four tiny trials with two rungs each."""
    return sweep_document(
        num_trials=4,
        num_steps=NUM_STEPS,
        synchronous=synchronous,
        batch_size=2,
        max_retries=100,
        max_parallel_trials=1,
    )


class _Lab:
    """A home with a daemon that is started again whenever it is dead."""

    def __init__(self, root: Path, nursery: Nursery) -> None:
        self._nursery = nursery
        self.root = fresh_home(root)
        self.database: Database = open_database(database_url(self.root))
        self.daemon: ProcessIdentity | None = None
        self.experiments: dict[str, bool] = {}
        self._fruitless: dict[str, tuple[int, int]] = {}

    def revive(self) -> None:
        """Starts a daemon if there is none."""
        if self.daemon is not None and processes.is_alive(self.daemon):
            return
        environment = processes.child_environment({"EVENLOAD_HOME": str(self.root)})
        environment.pop("RAY_ADDRESS", None)
        # Nothing answers there: MLflow is down all the time.
        environment["EVENLOAD_MLFLOW_URI"] = "http://127.0.0.1:9"
        self.daemon = self._nursery.start(["--num-cpus", "2"], log=self.root / "daemon.log", environment=environment)

    def end(self) -> None:
        """Stops the daemon in good order."""
        if self.daemon is not None and processes.is_alive(self.daemon):
            os.kill(self.daemon.pid, signal.SIGTERM)
            psutil.wait_procs([psutil.Process(self.daemon.pid)], timeout=120)

    def keep_busy(self) -> None:
        """Sees to it that there are experiments to drive, synchronous and asynchronous in turns."""
        with self.database.read() as work:
            running = [id for id in self.experiments if not is_terminal(work.experiments.get(id).state)]
        while len(running) < _AT_ONCE:
            synchronous = len(self.experiments) % 2 == 0
            id = submit(self.database, sweep(synchronous=synchronous))
            self.experiments[id] = synchronous
            running.append(id)

    def drivers(self) -> dict[str, ProcessIdentity]:
        """The living drivers, by experiment."""
        found = {}
        for file in self.root.glob("experiments/*/driver.json"):
            said = json.loads(file.read_text())
            identity = ProcessIdentity(said["pid"], said["started_at_s"])
            if processes.is_alive(identity):
                found[file.parent.name] = identity
        return found

    def head(self) -> list[psutil.Process]:
        """The processes of Ray's session; [] if there is none."""
        with self.database.read() as work:
            record = work.services.get("ray")
        if record is None or record.pid is None or "started_at_s" not in record.detail:
            return []
        return processes.session_members(ProcessIdentity(record.pid, record.detail["started_at_s"]))

    def trials(self) -> list[ProcessIdentity]:
        """The processes that train now."""
        found = []
        for process in self.head():
            try:
                if " ".join(process.cmdline()).startswith("ray::ImplicitFunc"):
                    found.append(ProcessIdentity(process.pid, process.create_time()))
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def fruitless(self, id: str) -> int:
        """How many drivers of an experiment were killed since it last got on."""
        with self.database.read() as work:
            sequence = work.experiments.get(id).sequence
        known, count = self._fruitless.get(id, (-1, 0))
        if sequence != known:
            self._fruitless[id] = (sequence, 0)
            return 0
        return count

    def blame(self, id: str) -> None:
        """Notes that a driver of an experiment is killed."""
        count = self.fruitless(id)
        self._fruitless[id] = (self._fruitless[id][0], count + 1)

    def killable(self) -> dict[str, ProcessIdentity]:
        """The living drivers that may be killed without having their experiment given up."""
        return {id: driver for id, driver in self.drivers().items() if self.fruitless(id) <= _MAX_FRUITLESS}


def kill_executors(
    root: Path, *, kills: dict[str, int], seed: int, minutes: float, say: Callable[[str], None]
) -> Report:
    """Kills processes of a fresh home in random order, lets it come to its end, and checks what is there.

    Args:
        kills: how many of `daemon`, `driver`, `trial` and `head`.
        minutes: after which no more are killed; the report says how many were.
    """
    rng = random.Random(seed)
    victims = [kind for kind, count in kills.items() for _ in range(count)]
    rng.shuffle(victims)
    nursery = Nursery("orchestrator.__main__", "orchestrator.execution.daemon")
    lab = _Lab(root, nursery)
    began = time.monotonic()
    done: Counter[str] = Counter()
    left: list[tuple[float, ProcessIdentity]] = []
    problems: list[str] = []
    try:
        for number, kind in enumerate(victims):
            if time.monotonic() - began > 60 * minutes:
                break
            lab.keep_busy()
            lab.revive()
            while (owned := _kill(lab, kind, rng)) is None:
                lab.keep_busy()
            left += [(time.monotonic() + _ORPHAN_S, identity) for identity in owned]
            done[kind] += 1
            left = _check_orphans(left, problems)
            if number % 10 == 9:
                say(f"{number + 1} of {len(victims)} kills, {len(lab.experiments)} experiments, problems: {problems}")
        _wait(lab, lambda: _all_over(lab), what="the end of all experiments")
        undisturbed = submit(lab.database, sweep(synchronous=True))
        lab.experiments[undisturbed] = True
        _wait(lab, lambda: _all_over(lab), what="the undisturbed sweep")
        problems += _judge(lab, undisturbed)
    finally:
        lab.end()
        nursery.__exit__(None, None, None)
        counts = _counts(lab)
        lab.database.close()
    deadline = time.monotonic() + _ORPHAN_S
    while (orphans := processes_of(lab.root)) and time.monotonic() < deadline:
        time.sleep(0.5)
    problems += [f"I8: {process.pid} is left over: {process.cmdline()[:5]}" for process in orphans]
    return Report(kills=dict(done), duration_s=time.monotonic() - began, counts=counts, problems=problems)


def _kill(lab: _Lab, kind: str, rng: random.Random) -> list[ProcessIdentity] | None:
    """Waits for a victim and for a random moment, kills it, and returns whom it must not leave behind.

    None if it ended by itself meanwhile, which does not count.
    """
    if kind == "daemon":
        time.sleep(rng.uniform(0, 2))
        assert lab.daemon is not None
        _sigkill(lab.daemon)
        _wait(lab, lambda daemon=lab.daemon: not processes.is_alive(daemon), what="the daemon's end")
        return []
    if kind == "driver":
        drivers = _wait(lab, lab.killable, what="a driver that got on")
        time.sleep(rng.uniform(0, 6))
        id = rng.choice(sorted(drivers))
        identity = drivers[id]
        lab.blame(id)
        owned = lab.trials() if len(lab.drivers()) == 1 else []
        return owned if _sigkill(identity) else None
    if kind == "trial":
        trials = _wait(lab, lab.trials, what="a trial's process")
        time.sleep(rng.uniform(0, 1))
        return [] if _sigkill(rng.choice(trials)) else None
    _wait(lab, lambda: lab.drivers() and lab.drivers().keys() == lab.killable().keys(), what="drivers that got on")
    members = _wait(lab, lab.head, what="a Ray head")
    time.sleep(rng.uniform(0, 5))
    name = rng.choice(("gcs_server", "raylet", ""))
    for id in lab.drivers():
        lab.blame(id)
    left = [ProcessIdentity(process.pid, process.create_time()) for process in members]
    killed = [
        identity
        for process, identity in zip(members, left, strict=True)
        if name in _name(process) and _sigkill(identity)
    ]
    return left if killed else None


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return "(gone)"


def _sigkill(victim: ProcessIdentity) -> bool:
    """Whether it was still there to be killed."""
    if not processes.is_alive(victim):
        return False
    os.kill(victim.pid, signal.SIGKILL)
    return True


def _wait(lab: _Lab, condition: Callable[[], Any], *, what: str) -> Any:
    deadline = time.monotonic() + _PATIENCE_S
    while not (value := condition()):
        lab.revive()
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {_PATIENCE_S:.0f} s in vain for {what}; see {lab.root}")
        time.sleep(0.1)
    return value


def _check_orphans(
    left: list[tuple[float, ProcessIdentity]], problems: list[str]
) -> list[tuple[float, ProcessIdentity]]:
    now = time.monotonic()
    alive = [(deadline, identity) for deadline, identity in left if processes.is_alive(identity)]
    problems += [
        f"I8: process {identity.pid} outlives its driver by 30 s" for deadline, identity in alive if deadline < now
    ]
    return [(deadline, identity) for deadline, identity in alive if deadline >= now]


def _all_over(lab: _Lab) -> bool:
    with lab.database.read() as work:
        return all(is_terminal(work.experiments.get(id).state) for id in lab.experiments)


def _judge(lab: _Lab, undisturbed: str) -> list[str]:
    history = read_history(lab.database)
    problems = [f"{invariant}: {what}" for invariant, what in violations(history)]
    there = {experiment.id: experiment for experiment in history.experiments}
    problems += [f"I1: {id} is not there" for id in lab.experiments if id not in there]
    expected = table(lab.database, undisturbed)
    for id, synchronous in lab.experiments.items():
        if there[id].state is not ExperimentState.COMPLETED:
            problems.append(f"I8: {id} ended as {there[id].state.value}: {there[id].reason}")
        elif synchronous and table(lab.database, id) != expected:
            problems.append(f"I5: {id} came to another table than the undisturbed sweep: {table(lab.database, id)}")
    return problems + _telemetry(lab, history) + _checkpoints(lab, history)


def _telemetry(lab: _Lab, history: History) -> list[str]:
    """I3, I4: a trial has each of its steps once, whatever runs it took."""
    problems = []
    for id, trials in history.trials.items():
        for trial in (trial for trial in trials if trial.state is TrialState.COMPLETED):
            steps: list[int] = []
            for run in (run for run in history.runs[id] if run.trial_id == trial.id):
                start = run.resumed_from_step or 0
                chunks = sorted((lab.root / run.folder).glob("telemetry/scalars-*.parquet"))
                own = [
                    step
                    for chunk in chunks
                    for step in pyarrow.parquet.read_table(chunk, columns=["step"])["step"].to_pylist()
                ]
                steps = [step for step in steps if step <= start] + own
            if steps != list(range(1, NUM_STEPS + 1)):
                problems.append(f"I3: trial {trial.id} has the steps {steps}")
    return problems


def _checkpoints(lab: _Lab, history: History) -> list[str]:
    """I6: every checkpoint that counts is whole."""
    problems = []
    with lab.database.read() as work:
        for trials in history.trials.values():
            for trial in trials:
                for checkpoint in work.checkpoints.of_trial(trial.id):
                    if not is_whole(lab.root / checkpoint.folder, checkpoint.manifest_sha256):
                        problems.append(f"I6: checkpoint {checkpoint.folder} is not whole")
    return problems


def _counts(lab: _Lab) -> dict[str, int]:
    history = read_history(lab.database)
    return {
        "experiments": len(history.experiments),
        "trials": sum(map(len, history.trials.values())),
        "runs": sum(map(len, history.runs.values())),
        "takeovers": sum(event.kind == "experiment.takeover" for event in history.events),
        "decisions": sum(event.kind == "rung.decided" for event in history.events),
    }
