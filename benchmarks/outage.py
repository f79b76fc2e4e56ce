"""What an MLflow that fails costs training: `python -m benchmarks.outage --json`.

One run trains in this process. Beside it there are four forwarders, of which each tries to bring it to an MLflow that
is refused, black-holed, slow or erroring (a faulty proxy before a real server), twice a second where the real one waits
from 4 s to a minute. All are halted (SIGSTOP) but one at a time, in turns of one logging interval, a quarter of a
second: a turn beside a fault and one beside nothing make a pair, in an order drawn for each. A fifth kind of pair is
halted in both of its turns. What it says is the error of the measurement itself.

    cpu     processor time of the training process per turn: what is done for MLflow in it, or because of it (caches and
            memory that two processes share). Says nothing of waiting; other work on the machine hardly moves it.
    wall    time on the clock: waiting, too, for anything, and so also for whatever else the machine does.

Training never talks to MLflow: what it could feel is a second process at work, which runs at a lower priority.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.failing_forwarders import FAULTS, failing_forwarders
from benchmarks.forwarder import mlflow_server
from benchmarks.paired import CONTROL, Effect, effect
from benchmarks.small_model import SMALL_MODEL
from orchestrator.execution.conductor import Conductor, Places, stop_run
from orchestrator.spec import ExperimentSpec
from orchestrator.store.migrate import upgrade
from orchestrator.store.session import Database, database_url, open_database
from trainer import worker
from trainer.config.run import RunReport, RunRequest

ARMS = (*(fault.value for fault in FAULTS), CONTROL)
CLOCKS = ("cpu", "wall")
ROUNDS = 50
_STEPS_PER_TURN = 5
_WARM_UP_STEPS = 40

MAX_STEPS, SEQ_LEN, BATCH = 100_000, 64, 16
SPEC = {
    "name": "benchmark",
    "base": {
        "model": SMALL_MODEL,
        "data": {"mixture": {"legal": 1}, "tokenizer": "bpe-1024", "seq_len": SEQ_LEN},
        "optimizer": {"lr": 1e-3},
        "loop": {
            "budget_tokens": MAX_STEPS * SEQ_LEN * BATCH,
            "global_batch_size": BATCH,
            "micro_batch_size": BATCH,
            "log_every_steps": _STEPS_PER_TURN,
            "checkpoint_every_tokens": 100 * SEQ_LEN * BATCH,
            "evaluate_every_tokens": MAX_STEPS * SEQ_LEN * BATCH,
        },
    },
    "num_trials": 1,
    "tracking": {"mlflow_points": "all"},
}


class Turn(NamedTuple):
    """Some steps of training.

    Attributes:
        arm: of the pair that it belongs to.
        failing: whether the arm's fault was met in it, or would be if the arm had one.
        cpu_s, wall_s: that they took.
    """

    arm: str
    failing: bool
    cpu_s: float
    wall_s: float


@dataclass(frozen=True)
class Measurement:
    """Turns beside one fault over turns beside halted forwarders, by clock: the estimate and its 95 % interval."""

    fault: str
    effects: dict[str, Effect]


@dataclass(frozen=True)
class Report:
    """Everything one run measured.

    Attributes:
        rounds: pairs of each kind.
        requests: how many met each fault.
        milliseconds: a step beside halted forwarders, the median by clock.
        measurements: of each fault, and of the control.
    """

    rounds: int
    requests: dict[str, int]
    milliseconds: dict[str, float]
    measurements: Sequence[Measurement]

    def as_json(self) -> str:
        document = asdict(self)
        document["measurements"] = [
            {"fault": each.fault} | {clock: _rounded(of) for clock, of in each.effects.items()}
            for each in self.measurements
        ]
        return json.dumps(document, indent=2)

    def as_table(self) -> str:
        lines = [f"{'':12}{'cpu':>8}{'95 %':>16}{'wall':>8}{'95 %':>16}{'requests':>10}"]
        for each in self.measurements:
            cells = [f"{of.ratio:8.3f}{f'{of.low:.3f} .. {of.high:.3f}':>16}" for of in each.effects.values()]
            lines.append(f"{each.fault:12}{''.join(cells)}{self.requests.get(each.fault, 0):10}")
        return "\n".join(lines)


def _rounded(of: Effect) -> dict[str, float]:
    return {key: round(value, 4) for key, value in of._asdict().items()}


def measurements(turns: Sequence[Turn]) -> list[Measurement]:
    """Returns what each arm's pairs say; of two turns that follow each other one is failing and one is not."""
    ratios: dict[str, dict[str, list[float]]] = {arm: {clock: [] for clock in CLOCKS} for arm in ARMS}
    for first, second in zip(turns[::2], turns[1::2], strict=True):
        assert first.arm == second.arm, "the two turns of a pair follow each other"
        assert first.failing is not second.failing, "a pair is one turn of each kind"
        failing, halted = (first, second) if first.failing else (second, first)
        ratios[first.arm]["cpu"].append(failing.cpu_s / halted.cpu_s)
        ratios[first.arm]["wall"].append(failing.wall_s / halted.wall_s)
    return [Measurement(arm, {clock: effect(of[clock]) for clock in CLOCKS}) for arm, of in ratios.items() if of["cpu"]]


def schedule(rounds: int, *, seed: int = 0) -> Iterator[tuple[str, bool]]:
    """Yields the arm of each turn and whether its fault is met: arms and the turns of every pair in a drawn order."""
    draw = random.Random(seed)
    for _ in range(rounds):
        for arm in draw.sample(ARMS, len(ARMS)):
            first = draw.random() < 0.5
            yield from ((arm, first), (arm, not first))


class _Turns:
    """Lets one forwarder at a time go on, or none, as the run progresses; and ends the run."""

    def __init__(self, beside: dict[str, Sequence[psutil.Process]], *, rounds: int, at_end: Callable[[], None]) -> None:
        self._beside = beside
        self._schedule = schedule(rounds)
        self._at_end = at_end
        self._num_steps = 0
        self._turn: tuple[str, bool] | None = None
        self._began = (0.0, 0.0)
        self._disturbed = False
        self.turns: list[Turn] = []

    def stepped(self, *_: object) -> None:
        """Ends a turn and begins the next; called after the update of every step."""
        self._num_steps += 1
        if self._num_steps < _WARM_UP_STEPS or self._num_steps % _STEPS_PER_TURN:
            return
        cpu_s, wall_s = (now - began for now, began in zip(_clocks(), self._began, strict=True))
        if self._disturbed:
            # It has a checkpoint of a hundred steps in it; the turn is taken again.
            self._disturbed = False
            self._began = _clocks()
            return
        if self._turn is not None:
            self.turns.append(Turn(*self._turn, cpu_s, wall_s))
            self._suspend()
        self._turn = next(self._schedule, None)
        if self._turn is None:
            self._at_end()
            return
        self._resume()
        self._began = _clocks()

    def _suspend(self) -> None:
        for process in self._running():
            process.suspend()

    def _resume(self) -> None:
        for process in self._running():
            process.resume()

    def _running(self) -> Sequence[psutil.Process]:
        return self._beside.get(self._turn[0], ()) if self._turn is not None and self._turn[1] else ()

    @contextmanager
    def let_go(self) -> Iterator[None]:
        """Within, all forwarders go on: a halted one may be in a transaction that a write of ours has to wait for."""
        everyone = [process for of in self._beside.values() for process in of]
        for process in everyone:
            process.resume()
        yield
        for process in everyone:
            process.suspend()
        self._resume()
        self._disturbed = True


def _clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def run(*, rounds: int = ROUNDS) -> Report:
    """Returns the measurements of one run of `rounds` pairs of turns for each fault and the control."""
    with tempfile.TemporaryDirectory(prefix="evenload-benchmark-") as folder:
        root = Path(folder) / "home"
        root.mkdir()
        upgrade(database_url(root))
        database = open_database(database_url(root))
        with mlflow_server(Path(folder) / "mlflow") as (url, server):
            conductor, request = _begun(database, root)
            with failing_forwarders(root, url, server) as forwarders:
                turns = _Turns(
                    {fault: forwarder.processes for fault, forwarder in forwarders.items()},
                    rounds=rounds,
                    at_end=lambda: stop_run(Path(request.folder)),
                )

                def take(report: RunReport) -> None:
                    with turns.let_go():
                        conductor.report(request.run_id, report)

                handle = register_optimizer_step_post_hook(turns.stepped)
                try:
                    worker.run(request, take)
                finally:
                    handle.remove()
                with turns.let_go():
                    requests = {fault: forwarder.num_requests() for fault, forwarder in forwarders.items()}
        database.close()
    halted = [turn for turn in turns.turns if not turn.failing]
    milliseconds = {
        clock: round(1e3 * statistics.median(getattr(turn, f"{clock}_s") for turn in halted) / _STEPS_PER_TURN, 2)
        for clock in CLOCKS
    }
    return Report(rounds, requests, milliseconds, measurements(turns.turns))


def _begun(database: Database, root: Path) -> tuple[Conductor, RunRequest]:
    """Returns an experiment's conductor and the run that it begins with."""
    with database.transaction() as work:
        spec = ExperimentSpec.model_validate(SPEC)
        experiment_id = work.experiments.submit(spec, document=SPEC).experiment.id
        epoch = work.experiments.claim(experiment_id, owner="benchmark", ttl_s=3600)
    assert epoch is not None, "nobody else claims it"
    places = Places(max_concurrent=1, num_threads=1, use_gpu=False)
    conductor = Conductor(database, root, experiment_id=experiment_id, epoch=epoch, places=places)
    conductor.recover()
    request = conductor.next_run()
    assert isinstance(request, RunRequest), "one trial is to run"
    return conductor, request


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outage", description="Steps while MLflow fails.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="Pairs of turns for each fault")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    report = run(rounds=options.rounds)
    print(report.as_json() if options.json else report.as_table())


if __name__ == "__main__":
    main()
