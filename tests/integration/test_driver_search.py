"""What the search decides from what runs report, through the database: reduced objectives and other rules than ASHA."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.execution.conductor import Conductor
from orchestrator.states import Cause, TrialState
from orchestrator.store.records import TrialRecord
from orchestrator.store.session import Database
from tests.support.sweeps import play, sqlite_database, submit, sweep_document, table, take_over
from trainer.config.run import DomainEvaluation, RunReport, RunRequest


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    yield from sqlite_database(tmp_path)


def trial_after(conductor: Conductor, database: Database, values: list[float], *, rungs: bool) -> TrialRecord:
    """The only trial of an experiment after a run that was evaluated every 1,000 tokens, and then finished."""
    request = conductor.next_run()
    assert isinstance(request, RunRequest)
    conductor.report(request.run_id, RunReport(kind="started", step=0, tokens=0))
    for index, value in enumerate(values):
        last = index == len(values) - 1
        report = RunReport(
            kind="finished" if last else "progress",
            step=index + 1,
            tokens=1000 * (index + 1),
            rung=index if rungs and not last else None,
            evaluation={"all": DomainEvaluation(bits_per_byte=value, loss=2 * value)},
        )
        if not conductor.report(request.run_id, report):
            break
    with database.read() as work:
        return work.trials.history(conductor.experiment_id)[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"kind": "last"}, (2.5, 4000)),
        ({"kind": "best"}, (1.0, 2000)),
        ({"kind": "mean", "num_evaluations": 2}, (2.0, 4000)),
        ({"kind": "at", "tokens": 2500}, (1.5, 3000)),
    ],
)
def test_objective_is_reduced_from_the_recorded_evaluations(
    database: Database, tmp_path: Path, value: dict[str, object], expected: tuple[float, int]
) -> None:
    document = sweep_document(num_trials=1, objective={"value": value}, scheduler={"kind": "none"})
    conductor = take_over(database, tmp_path, submit(database, document))
    trial = trial_after(conductor, database, [3.0, 1.0, 1.5, 2.5], rungs=False)
    assert (trial.state, trial.objective, trial.objective_tokens) == (TrialState.COMPLETED, *expected)


def test_patience_prunes_with_its_own_cause(database: Database, tmp_path: Path) -> None:
    scheduler = {"kind": "patience", "min_tokens": 512, "interval_tokens": 512, "patience": 2}
    conductor = take_over(database, tmp_path, submit(database, sweep_document(num_trials=1, scheduler=scheduler)))
    trial = trial_after(conductor, database, [3.0, 2.0, 2.5, 2.25, 1.0], rungs=True)
    assert (trial.state, trial.cause) == (TrialState.PRUNED, Cause.PATIENCE)
    assert trial.reason == "no better than 2.0000 for 2 rungs by rung 3; patience=2"
    assert [record.value for record in trial.rungs] == [3.0, 2.0, 2.5, 2.25]


@pytest.mark.parametrize("kind", ["cmaes", "nsga2", "qmc", "brute_force"])
def test_I5_I7_synchronous_sweep_is_the_same_after_a_kill_at_any_call(
    database: Database, tmp_path: Path, kind: str
) -> None:
    sampler = {"kind": kind} | ({"population_size": 4} if kind in ("cmaes", "nsga2") else {})
    space = {"seed": {"int": [0, 30]}, "data.seq_len": {"choice": [16, 32]}}
    document = sweep_document(
        num_trials=9,
        sampler=sampler,
        space=space,
        constraints=["seed + data.seq_len <= 60"],
        enqueue=[{"seed": 3}],
        synchronous=True,
        batch_size=3,
    )
    undisturbed = submit(database, document)
    play(take_over(database, tmp_path, undisturbed))
    expected = table(database, undisturbed)
    for max_calls in (3, 10, 25):
        disturbed = submit(database, document)
        play(take_over(database, tmp_path, disturbed), max_calls=max_calls)
        play(take_over(database, tmp_path, disturbed))
        assert table(database, disturbed) == expected
