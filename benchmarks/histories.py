"""How what a driver does grows with the trials that there are: `python -m benchmarks.histories [--json]`.

Without Ray, on a SQLite file with a history of 10 to 10,000 trials, medians in milliseconds:

    decide     a report at a rung of ASHA: taken, decided on among all arrivals there, committed
    begin      the next trial: proposed at random, written, its run written
    end        a run's last word: run and trial ended

and the memory of this process, which is the driver here. Proposals of TPE: `benchmarks.search`.

Then one driver plays 1,000 trials that do nothing, from proposal to end, again without Ray: its memory on the way, and
what a trial takes: statements, transactions that write, milliseconds of CPU time and of the clock, and how long one
commit waits for the disk (fsync of a page).
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
from sqlalchemy import event, insert

from benchmarks.orchestration import conducted, finished, spec_of
from orchestrator.execution.conductor import Conductor
from orchestrator.search.space import resolve
from orchestrator.states import RunState, TrialState
from orchestrator.store.models import RungRow
from orchestrator.store.records import Proposal, TrialKind
from orchestrator.store.work import Work
from trainer.config.run import DomainEvaluation, RunReport, RunRequest

T = TypeVar("T")

LENGTHS = (10, 100, 1000, 10_000)
_PARAM = "optimizer.lr"
_BATCH = 200
NUM_PLAYED = 1000


@dataclass(frozen=True)
class Growth:
    """Medians at one length of the history."""

    num_trials: int
    decide_ms: float
    begin_ms: float
    end_ms: float
    driver_mib: float


@dataclass(frozen=True)
class Report:
    """Everything one run measured."""

    rounds: int
    growth: Sequence[Growth]
    per_trial: dict[str, float] = field(default_factory=dict)
    """Of a driver that plays many trials in turn: means."""
    memory_mib: dict[str, float] = field(default_factory=dict)
    """Of that driver, after so many trials."""

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def as_table(self) -> str:
        names = list(Growth.__annotations__)
        rows = [names, *([f"{value:g}" for value in asdict(growth).values()] for growth in self.growth)]
        lines = ["".join(f"{cell:>15}" for cell in row) for row in rows]
        return "\n".join([*lines, f"per trial: {self.per_trial}", f"memory in MiB: {self.memory_mib}"])


def run(*, lengths: Sequence[int] = LENGTHS, rounds: int = 9, num_played: int = NUM_PLAYED) -> Report:
    """Measures at each length of the history, shortest first, after `num_played` trials in turn."""
    per_trial, memory = _played(num_played)
    return Report(rounds, [_at(length, rounds) for length in lengths], per_trial, memory)


def _played(num_trials: int) -> tuple[dict[str, float], dict[str, float]]:
    """What a trial takes, and the driver's memory on the way; both after a tenth of the trials, for warming up."""
    process = psutil.Process()
    counts = {"statements": 0, "transactions": 0}

    def count(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        counts["statements"] += 1
        counts["transactions"] += statement == "BEGIN IMMEDIATE"

    with (
        tempfile.TemporaryDirectory(prefix="evenload-benchmark-") as folder,
        conducted(Path(folder) / "home", spec_of(num_trials)) as (conductor, database),
    ):
        memory: dict[str, float] = {}
        event.listen(database.engine, "before_cursor_execute", count)
        num_warm = max(1, num_trials // 10)
        began, cpu_began = 0.0, 0.0
        for number in range(1, num_trials + 1):
            request = conductor.next_run()
            assert isinstance(request, RunRequest), request
            conductor.report(request.run_id, RunReport(kind="started", step=0, tokens=0))
            conductor.report(request.run_id, finished(request))
            conductor.ended(request.run_id, None)
            if number in (num_warm, num_trials // 2, num_trials):
                memory[str(number)] = round(process.memory_info().rss / 2**20, 1)
            if number == num_warm:
                counts.update(statements=0, transactions=0)
                began, cpu_began = time.perf_counter(), time.process_time()
        num_timed = num_trials - num_warm
        per_trial = {name: round(value / num_timed, 2) for name, value in counts.items()}
        per_trial["cpu_ms"] = round(1000 * (time.process_time() - cpu_began) / num_timed, 2)
        per_trial["wall_ms"] = round(1000 * (time.perf_counter() - began) / num_timed, 2)
        per_trial["fsync_ms"] = round(1000 * _fsync_s(Path(folder) / "page"), 2)
    return per_trial, memory


def _fsync_s(path: Path, rounds: int = 50) -> float:
    """The median time until a page that was appended to a file is on the disk."""
    times: list[float] = []
    with path.open("wb", buffering=0) as file:
        for _ in range(rounds):
            file.write(bytes(4096))
            _timed(times, lambda: os.fsync(file.fileno()))
    return statistics.median(times)


def _at(num_trials: int, rounds: int) -> Growth:
    scheduler = {"kind": "asha", "min_tokens": 8192, "reduction_factor": 2}
    spec = spec_of(num_trials + rounds, scheduler=scheduler)
    times: dict[str, list[float]] = {"decide": [], "begin": [], "end": []}
    with (
        tempfile.TemporaryDirectory(prefix="evenload-benchmark-") as folder,
        conducted(Path(folder) / "home", spec) as (conductor, database),
    ):
        for first in range(0, num_trials, _BATCH):
            numbers = range(first, min(first + _BATCH, num_trials))
            database.run(lambda work, numbers=numbers: _fill(work, conductor, numbers))
        for _ in range(rounds):
            request = _timed(times["begin"], conductor.next_run)
            assert isinstance(request, RunRequest), request
            conductor.report(request.run_id, RunReport(kind="started", step=0, tokens=0))
            arrival = _arrival(request)
            goes_on = _timed(times["decide"], lambda r=request, a=arrival: conductor.report(r.run_id, a))
            if goes_on:
                _timed(times["end"], lambda r=request: conductor.report(r.run_id, finished(r)))
            conductor.ended(request.run_id, None)
    medians = {name: round(1000 * statistics.median(values), 2) if values else 0.0 for name, values in times.items()}
    return Growth(
        num_trials=num_trials,
        decide_ms=medians["decide"],
        begin_ms=medians["begin"],
        end_ms=medians["end"],
        driver_mib=round(psutil.Process().memory_info().rss / 2**20, 1),
    )


def _fill(work: Work, conductor: Conductor, numbers: range) -> None:
    """Trials that are over, with their run and their arrival at the first rung."""
    id, epoch = conductor.experiment_id, conductor.epoch
    for number in numbers:
        value = 1e-4 * 1.0004**number
        params = {_PARAM: value}
        trial_id = work.trials.insert(
            id,
            number=number,
            kind=TrialKind.SEARCH,
            label=None,
            batch=None,
            epoch=epoch,
            sequence=work.experiments.next_sequence(id),
            proposal=Proposal(params=dict(params), config=resolve(conductor.spec, params)),
        )
        work.experiments.hold(id, epoch)
        started = work.runs.begin(work.runs.add(work.trials.get(trial_id), epoch=epoch))
        arrival = {"tokens": 8192, "value": value, "decision": "continue", "explanation": "", "at_ms": 0}
        sequence = work.experiments.next_sequence(id)
        keys = {"trial_id": trial_id, "rung": 0, "experiment_id": id, "run_id": started.id, "sequence": sequence}
        work.connection.execute(insert(RungRow).values(**keys, **arrival))
        work.runs.end(started, RunState.COMPLETED, cause=None, reason="")
        ended = {"state": TrialState.COMPLETED, "objective": value, "objective_tokens": 65_536}
        work.trials.settle_held(work.trials.get(trial_id), epoch=epoch, **ended)


def _arrival(request: RunRequest) -> RunReport:
    """A report at the first rung, better than all before it."""
    figures = {"all": DomainEvaluation(bits_per_byte=1e-5, loss=1e-5)}
    step = request.config.steps_for_tokens(request.rung_tokens[0])
    return RunReport(kind="progress", step=step, tokens=request.rung_tokens[0], rung=0, evaluation=figures)


def _timed(into: list[float], call: Callable[[], T]) -> T:
    started = time.perf_counter()
    result = call()
    into.append(time.perf_counter() - started)
    return result


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.histories", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    report = run(lengths=options.lengths, rounds=options.rounds)
    print(report.as_json() if options.json else report.as_table())


if __name__ == "__main__":
    main()
