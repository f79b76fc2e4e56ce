"""What a proposal costs beside Optuna's own: `python -m benchmarks.search --json`.

    ask_to_optuna        a proposal of our TPE, from rows that are there, over `ask` and the suggestions of an Optuna
                         study that lives in memory from the first trial to the last, with the same sampler and past
    recorded_to_optuna   the same with the rows read from SQLite and the proposal written to it, which is then on the
                         disk

In turns, trial after trial, so that the past grows by one each round as it does in a search. Ours includes what Optuna
has no part in: constraints, and the complete configuration at the point. The space has five parameters (log, float,
int, choice, int); all trials have completed. Times are those of the processor, so that other processes play no part;
waiting for the disk is not counted.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import optuna

from benchmarks.small_model import SMALL_MODEL
from orchestrator.search.distributions import distribution, to_optuna
from orchestrator.search.draw import draw
from orchestrator.search.propose import propose
from orchestrator.search.space import parameters, resolve
from orchestrator.search.told import Memory
from orchestrator.spec import ExperimentSpec, Scalar
from orchestrator.states import TrialState
from orchestrator.store.migrate import upgrade
from orchestrator.store.records import Proposal, TrialKind, TrialRecord
from orchestrator.store.session import open_database
from orchestrator.store.trials import Remembered
from orchestrator.store.work import Work

SIZES = (10, 100, 1000, 10_000)
"""Past trials."""
LARGEST_RECORDED = 1000
"""Past trials up to which rows are written to a database, which takes a while."""
SPEC = {
    "name": "benchmark",
    "base": {
        "model": SMALL_MODEL,
        "data": {"tokenizer": "bpe-1024", "seq_len": 64},
        "optimizer": {"lr": 1e-3},
        "loop": {"budget_tokens": 65_536, "global_batch_size": 16, "micro_batch_size": 16},
    },
    "space": {
        "optimizer.lr": {"float": [1e-4, 1e-2], "log": True},
        "optimizer.weight_decay": {"float": [0.0, 0.3]},
        "model.moe.top_k": {"int": [1, 4]},
        "model.moe.router.normalize": {"choice": [True, False]},
        "seed": {"int": [0, 100]},
    },
    "sampler": {"kind": "tpe"},
    "num_trials": 100_000,
}


@dataclass(frozen=True)
class Measurement:
    """Processor times of one proposal with so many past trials, and their ratios: of the least and the median times."""

    num_past: int
    milliseconds: dict[str, float]
    ratios: dict[str, float]
    median_ratios: dict[str, float]


@dataclass(frozen=True)
class SearchReport:
    """Everything one run measured."""

    optuna: str
    rounds: int
    measurements: Sequence[Measurement]

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def as_table(self) -> str:
        lines = [f"optuna {self.optuna}, {self.rounds} rounds"]
        for one in self.measurements:
            lines.append(f"past trials {one.num_past:,}")
            lines += [f"  {name:<22}{milliseconds:9.2f} ms" for name, milliseconds in one.milliseconds.items()]
            lines += [f"  {name:<22}{ratio:9.3f}" for name, ratio in one.ratios.items()]
        return "\n".join(lines)


def value_of(params: dict[str, Scalar]) -> float:
    """What a trial comes to."""
    return abs(float(str(params["optimizer.lr"])) - 3e-3) + 0.01 * int(str(params["model.moe.top_k"]))


class Past:
    """The same completed trials as our rows and as an Optuna study."""

    def __init__(self, spec: ExperimentSpec, size: int) -> None:
        self.spec = spec
        self.rows: list[TrialRecord] = []
        self._space = {parameter.name: parameter.domain for parameter in parameters(spec)}
        self._distributions = {name: distribution(domain) for name, domain in self._space.items()}
        sampler = optuna.samplers.TPESampler(seed=spec.seed, multivariate=True, constant_liar=True)
        self.study = optuna.create_study(sampler=sampler)
        config = resolve(spec, draw(parameters(spec), spec.seed, 0))
        self._row = TrialRecord(
            id="",
            experiment_id="exp_0",
            number=0,
            kind=TrialKind.SEARCH,
            label=None,
            batch=None,
            state=TrialState.COMPLETED,
            cause=None,
            reason="",
            since_ms=0,
            epoch=1,
            params={},
            config=config.model_dump(mode="json"),
            config_fingerprint=None,
            asked_sequence=0,
            finished_sequence=0,
            objective=0.0,
            objective_tokens=config.loop.budget_tokens,
            summary=None,
            num_retries=0,
            created_at_ms=0,
            started_at_ms=0,
            finished_at_ms=1,
        )
        for number in range(size):
            params = draw(parameters(spec), spec.seed, number)
            self.add(params)
            self.study.add_trial(
                optuna.trial.create_trial(
                    value=value_of(params),
                    params={name: to_optuna(self._space[name], value) for name, value in params.items()},
                    distributions=self._distributions,
                )
            )

    def add(self, params: dict[str, Scalar]) -> None:
        """Adds a row that has completed."""
        number = len(self.rows)
        self.rows.append(
            replace(
                self._row,
                id=f"trl_{number}",
                number=number,
                params=params,
                asked_sequence=2 * number + 1,
                finished_sequence=2 * number + 2,
                objective=value_of(params),
            )
        )

    def ask_optuna(self) -> optuna.Trial:
        """A trial of the living study with all its parameters."""
        return self.study.ask(self._distributions)


class Recorded:
    """An experiment in a SQLite file whose trials have the same past."""

    def __init__(self, folder: Path, past: Past) -> None:
        url = f"sqlite:///{folder / 'evenload.db'}"
        upgrade(url)
        self._database = open_database(url)
        self._memory, self._remembered = Memory(), Remembered()
        self._spec = past.spec
        with self._database.transaction() as work:
            self._id = work.experiments.submit(past.spec, document={}).experiment.id
            epoch = work.experiments.claim(self._id, owner="benchmark", ttl_s=3600)
            assert epoch is not None, "nobody else claims it"
            self._epoch = epoch
            for row in past.rows:
                proposal = Proposal(params=row.params, config=resolve(past.spec, row.params))
                work.trials.propose(self._id, epoch=epoch, choose=lambda *_, proposal=proposal: proposal)
                self._complete(work, row.number, value_of(row.params))

    def propose(self) -> TrialRecord:
        """A proposal that is on the disk."""
        trial = self._database.run(
            lambda work: work.trials.propose(
                self._id,
                epoch=self._epoch,
                choose=lambda number, history: propose(self._spec, number=number, history=history, memory=self._memory),
                remembered=self._remembered,
            )
        )
        assert trial is not None, "the search has more trials to make"
        return trial

    def complete(self, trial: TrialRecord) -> None:
        """Has the trial completed."""
        self._database.run(lambda work: self._complete(work, trial.number, value_of(trial.params)))

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def _complete(self, work: Work, number: int, value: float) -> None:
        trial = work.trials.list(self._id, limit=1).items[0] if number == 0 else work.trials.unsettled(self._id)[0]
        work.trials.begin(trial, self._epoch)
        work.trials.end(
            work.trials.get(trial.id), TrialState.COMPLETED, cause=None, reason="", values={"objective": value}
        )


def measure(size: int, *, rounds: int) -> Measurement:
    """What a proposal costs after `size` trials."""
    spec = ExperimentSpec.model_validate(SPEC)
    past = Past(spec, size)
    memory = Memory()
    times: dict[str, list[float]] = {"optuna": [], "ask": []}

    def timed(name: str, work: Callable[[], object]) -> object:
        started_s = time.process_time()
        result = work()
        times.setdefault(name, []).append(time.process_time() - started_s)
        return result

    with tempfile.TemporaryDirectory(prefix="evenload-benchmark-") as folder:
        recorded = Recorded(Path(folder), past) if size <= LARGEST_RECORDED else None
        for round_ in range(-1, rounds):
            if round_ == 0:
                times = {name: [] for name in times}  # the first one makes what later ones only add to
            asked = timed("optuna", past.ask_optuna)
            proposal = timed("ask", lambda: propose(spec, number=len(past.rows), history=past.rows, memory=memory))
            assert isinstance(proposal, Proposal)
            assert isinstance(asked, optuna.Trial)
            past.study.tell(asked, value_of(proposal.params))
            past.add(proposal.params)
            if recorded is not None:
                trial = timed("recorded", recorded.propose)
                assert isinstance(trial, TrialRecord)
                recorded.complete(trial)
        if recorded is not None:
            recorded.close()

    def ratios(of: Callable[[Sequence[float]], float]) -> dict[str, float]:
        return {
            f"{name}_to_optuna": round(of(times[name]) / of(times["optuna"]), 4) for name in times if name != "optuna"
        }

    return Measurement(
        num_past=size,
        milliseconds={name: round(min(seconds) * 1e3, 3) for name, seconds in times.items()},
        ratios=ratios(min),
        median_ratios=ratios(statistics.median),
    )


def run(*, rounds: int, sizes: Sequence[int] = SIZES) -> SearchReport:
    """Measures all sizes."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        measurements = [measure(size, rounds=rounds) for size in sizes]
    return SearchReport(optuna=optuna.__version__, rounds=rounds, measurements=measurements)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description="What a proposal costs.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES), help="past trials")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    report = run(rounds=options.rounds, sizes=options.sizes)
    print(report.as_json() if options.json else report.as_table())


if __name__ == "__main__":
    main()
