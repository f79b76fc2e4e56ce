"""What an MLflow that fails costs training: `python -m benchmarks.outage --json`.

One run trains in this process. Beside it a forwarder tries to bring it to an MLflow that is refused, black-holed, slow
or erroring (a faulty proxy before a real server), twice a second where the real one waits from 4 s to a minute.
About once a second it is halted (SIGSTOP) or goes on; a step's cost while it fails is held against the cost while it is
halted before and after, in the same run.

    cpu     processor time of the training process per step: what is done for MLflow in it, or because of it (caches and
            memory that two processes share). Says nothing of waiting; other work on the machine hardly moves it.
    wall    time on the clock per step: waiting, too, for anything, and so also for whatever else the machine does.

Training never talks to MLflow: what it could feel is a second process at work, which runs at a lower priority.
"""

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.forwarder import mlflow_server
from benchmarks.small_model import SMALL_MODEL
from orchestrator.errors import TrackingUnavailable
from orchestrator.execution.conductor import Conductor, Places, stop_run
from orchestrator.spec import ExperimentSpec
from orchestrator.store.migrate import upgrade
from orchestrator.store.session import database_url, open_database
from orchestrator.tracking.forwarder import Forwarder
from tests.support.faulty_proxy import Fault, FaultyProxy
from trainer import worker
from trainer.config.run import RunReport, RunRequest
from trainer.telemetry.progress import Progress

FAULTS = (Fault.REFUSE, Fault.BLACK_HOLE, Fault.SLOW, Fault.ERROR)
ROUNDS = 12
_PAUSE_S = 0.5
_TIMEOUT_S = 1
_NICENESS = 10

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
            "log_every_steps": 5,
            "checkpoint_every_tokens": 100 * SEQ_LEN * BATCH,
            "evaluate_every_tokens": MAX_STEPS * SEQ_LEN * BATCH,
        },
    },
    "num_trials": 1,
    "tracking": {"mlflow_points": "all"},
}


@dataclass(frozen=True)
class Period:
    """About a second of training.

    Attributes:
        fault: that the forwarder met; None while it was halted.
        steps: trained.
        cpu_s, wall_s: that they took.
    """

    fault: str | None
    steps: int
    cpu_s: float
    wall_s: float

    def per_step(self, clock: str) -> float:
        """Seconds a step, by `cpu` or `wall`."""
        return (self.cpu_s if clock == "cpu" else self.wall_s) / self.steps


@dataclass(frozen=True)
class Measurement:
    """Steps beside one fault over steps beside a halted forwarder, by clock: least over least, and the median of the
    ratios of each period to its neighbours."""

    fault: str
    ratios: dict[str, float]
    median_ratios: dict[str, float]


@dataclass(frozen=True)
class Report:
    """Everything one run measured.

    Attributes:
        rounds: periods of each fault.
        requests: how many met each fault.
        milliseconds: a step beside a halted forwarder, the median by clock.
    """

    rounds: int
    requests: dict[str, int]
    milliseconds: dict[str, float]
    measurements: Sequence[Measurement]

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def as_table(self) -> str:
        lines = [f"{'':12}{'least: cpu':>12}{'wall':>8}{'median: cpu':>14}{'wall':>8}{'requests':>10}"]
        for each in self.measurements:
            least, median = each.ratios, each.median_ratios
            lines.append(
                f"{each.fault:12}{least['cpu']:12.3f}{least['wall']:8.3f}{median['cpu']:14.3f}{median['wall']:8.3f}"
                f"{self.requests[each.fault]:10}"
            )
        return "\n".join(lines)


def measurements(periods: Sequence[Period]) -> list[Measurement]:
    """Returns the ratios of periods that alternate: halted, a fault, halted, another, ..., halted."""
    found = []
    for fault in dict.fromkeys(period.fault for period in periods if period.fault is not None):
        least, median = {}, {}
        for clock in ("cpu", "wall"):
            halted = [period.per_step(clock) for period in periods if period.fault is None]
            failing = [period.per_step(clock) for period in periods if period.fault == fault]
            paired = [
                period.per_step(clock) / statistics.mean(near.per_step(clock) for near in (before, after))
                for before, period, after in zip(periods, periods[1:], periods[2:], strict=False)
                if period.fault == fault
            ]
            least[clock] = round(min(failing) / min(halted), 4)
            median[clock] = round(statistics.median(paired), 4)
        found.append(Measurement(fault, least, median))
    return found


class _Turns:
    """Halts the forwarder and lets it go on, by turns, as the run progresses; and ends the run."""

    def __init__(self, child: Any, connection: Connection, folder: Path, *, rounds: int) -> None:
        self._child = child
        self._connection = connection
        self._folder = folder
        self._turns = iter([turn for _ in range(rounds) for fault in FAULTS for turn in (None, fault)] + [None])
        self._turn: Fault | None = None
        self._began: tuple[int, float, float] | None = None
        self.periods: list[Period] = []

    def progressed(self, at: Progress) -> None:
        """Ends a period and begins the next; called about once a second, between two steps."""
        if self._began is not None:
            step, cpu_s, wall_s = self._began
            taken = (at.step - step, time.process_time() - cpu_s, time.perf_counter() - wall_s)
            self.periods.append(Period(None if self._turn is None else self._turn.value, *taken))
        following = next(self._turns, "over")
        if following == "over":
            stop_run(self._folder)
            return
        self._turn = None if following is None else Fault(following)
        if self._turn is None:
            os.kill(self._child.pid, signal.SIGSTOP)
        else:
            os.kill(self._child.pid, signal.SIGCONT)
            self._connection.send(self._turn.value)
            self._connection.recv()
        self._began = (at.step, time.process_time(), time.perf_counter())


def _suffer(root: str, url: str, connection: Connection) -> None:
    """Tries to forward to `url` through a proxy that fails as it is told to, until it is told nothing more."""
    os.nice(_NICENESS)
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    database = open_database(database_url(Path(root)))
    with FaultyProxy((address.hostname, address.port)) as proxy:
        fault = Fault.NONE
        while True:
            while connection.poll():
                told = connection.recv()
                if told is None:
                    connection.send({name.value: number for name, number in proxy.met.items()})
                    return
                fault = Fault(told)
                connection.send(None)
            with proxy.failing(fault), suppress(TrackingUnavailable):
                Forwarder(database, Path(root), proxy.url, timeout_s=_TIMEOUT_S).round()
            time.sleep(_PAUSE_S)


def run(*, rounds: int = ROUNDS) -> Report:
    """Returns the measurements of one run of `2 * rounds` seconds per fault."""
    with tempfile.TemporaryDirectory(prefix="evenload-benchmark-") as folder:
        root = Path(folder) / "home"
        root.mkdir()
        upgrade(database_url(root))
        database = open_database(database_url(root))
        with mlflow_server(Path(folder) / "mlflow") as (url, _):
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
            here, there = multiprocessing.Pipe()
            child = multiprocessing.get_context("spawn").Process(
                target=_suffer, args=(str(root), url, there), daemon=True
            )
            child.start()
            try:
                here.send(Fault.ERROR.value)
                here.recv()  # it has started up, which is not what is measured
                turns = _Turns(child, here, Path(request.folder), rounds=rounds)

                def take(report: RunReport) -> None:
                    conductor.report(request.run_id, report)

                worker.run(request, take, on_progress=turns.progressed)
                os.kill(child.pid or 0, signal.SIGCONT)
                here.send(None)
                requests = here.recv()
            finally:
                child.kill()
                child.join()
        database.close()
    halted = [period for period in turns.periods if period.fault is None]
    milliseconds = {
        clock: round(1e3 * statistics.median(period.per_step(clock) for period in halted), 2)
        for clock in ("cpu", "wall")
    }
    return Report(rounds, requests, milliseconds, measurements(turns.periods))


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outage", description="Steps while MLflow fails.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="Periods of about a second for each fault")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    report = run(rounds=options.rounds)
    print(report.as_json() if options.json else report.as_table())


if __name__ == "__main__":
    main()
