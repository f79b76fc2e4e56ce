"""Our proposals against Optuna's own: the same seeds and the same past give the same points, the same budget as good a
best.

A study of ours is rebuilt from rows for every trial; Optuna's lives in memory from the first trial to the last.
"""

import math
import statistics
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest

from benchmarks.functions import FUNCTIONS, SPACE, Function, excess, suggest, value_of
from benchmarks.landscapes import BUDGET_STEPS, CURVES, measured, regret
from benchmarks.search_quality import ARMS, ASHA, OURS, THEIRS
from benchmarks.simulated_sweep import Ours, Tunes, chosen, document, point_of, simulate
from orchestrator.search.draw import derived_seed
from orchestrator.search.propose import propose
from orchestrator.search.study import study_of
from orchestrator.spec import ExperimentSpec
from orchestrator.states import TrialState
from orchestrator.store.records import TrialRecord
from orchestrator.store.session import Database
from tests.support.records import trial_record
from tests.support.specs import experiment_spec
from tests.support.sweeps import sqlite_database, submit, take_over
from trainer.config.run import DomainEvaluation, RunReport, RunRequest


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    yield from sqlite_database(tmp_path)


def ours(spec: ExperimentSpec, function: Function, num_trials: int) -> list[TrialRecord]:
    history: list[TrialRecord] = []
    for number in range(num_trials):
        proposal = propose(spec, number=number, history=history)
        assert proposal is not None
        value = value_of(function, proposal.params)
        history.append(trial_record(spec, number, proposal.params, objective=value))
    return history


def theirs(
    sampler_of: Callable[[int], optuna.samplers.BaseSampler], function: Function, num_trials: int
) -> list[optuna.trial.FrozenTrial]:
    """Optuna's ordinary loop; `sampler_of(number)` is the sampler that trial `number` is asked from."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study()
        for number in range(num_trials):
            study.sampler = sampler_of(number)
            trial = study.ask()
            study.tell(trial, value_of(function, suggest(trial)))
    return study.trials


SAMPLERS: dict[str, tuple[dict[str, object], Callable[[int], optuna.samplers.BaseSampler], int]] = {
    "tpe": (
        {"num_startup_trials": 5},
        lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=5, multivariate=True, constant_liar=True),
        25,
    ),
    "gp": (
        {"num_startup_trials": 5},
        lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=5),
        9,
    ),
    "nsga2": (
        {"population_size": 6},
        lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=6),
        # One generation and a child of it. Then Optuna notes the parents and lists them in another order than before.
        7,
    ),
}


@pytest.mark.parametrize("function", FUNCTIONS.values())
@pytest.mark.parametrize("kind", SAMPLERS)
def test_points_are_those_of_optuna_run_directly(kind: str, function: Function) -> None:
    fields, sampler, num_trials = SAMPLERS[kind]
    spec = experiment_spec(space=SPACE, sampler={"kind": kind} | fields, num_trials=num_trials, seed=7)
    direct = theirs(lambda number: sampler(derived_seed(7, number)), function, num_trials)
    assert [trial.params for trial in ours(spec, function, num_trials)] == [trial.params for trial in direct]


@pytest.mark.parametrize("function", FUNCTIONS.values())
def test_cma_finds_as_good_a_best_as_optunas(function: Function) -> None:
    num_seeds, num_trials = 8, 40  # `benchmarks.search_quality` has more

    def best_ours(seed: int) -> float:
        spec = experiment_spec(space=SPACE, sampler={"kind": "cmaes"}, num_trials=num_trials, seed=seed)
        return min(trial.objective for trial in ours(spec, function, num_trials) if trial.objective is not None)

    def best_theirs(seed: int) -> float:
        sampler = optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        return min(trial.value for trial in theirs(lambda _: sampler, function, num_trials) if trial.value is not None)

    one = [math.log10(excess(function, best_ours(seed))) for seed in range(num_seeds)]
    other = [math.log10(excess(function, best_theirs(seed))) for seed in range(num_seeds)]
    # Standard error of the difference of two means; twice it would be exceeded by chance once in 20.
    error = math.sqrt((statistics.variance(one) + statistics.variance(other)) / num_seeds)
    assert abs(statistics.fmean(one) - statistics.fmean(other)) < 2 * error, (one, other)


@pytest.mark.parametrize("scheduler", [ASHA, ASHA | {"kind": "hyperband"}], ids=["asha", "hyperband"])
def test_simulated_sweep_makes_the_trials_that_the_conductor_makes(
    database: Database, tmp_path: Path, scheduler: dict[str, object]
) -> None:
    curve, num_trials = CURVES["crossing"], 14
    fields = {"sampler": {"kind": "tpe", "num_startup_trials": 5}, "scheduler": scheduler, "num_trials": num_trials}
    simulated = simulate(Ours(3, **fields), curve, seed=3, num_workers=1, num_steps=num_trials * BUDGET_STEPS)

    def reports(request: RunRequest) -> Iterator[RunReport]:
        config = request.config
        rung_at = {config.steps_for_tokens(tokens): rung for rung, tokens in enumerate(request.rung_tokens)}
        yield RunReport(kind="started", step=0, tokens=0)
        for step in (*rung_at, BUDGET_STEPS):
            balancing = config.model.moe.balancing[0].coefficient  # type: ignore[union-attr]
            values = (config.optimizer.lr, config.optimizer.weight_decay, balancing)
            point = point_of(dict(zip(document(3)["space"], values, strict=True)))
            loss = measured(curve, point, step, seed=3)
            yield RunReport(
                kind="finished" if step == BUDGET_STEPS else "progress",
                step=step,
                tokens=step * config.step_tokens,
                rung=rung_at.get(step),
                evaluation={"all": DomainEvaluation(bits_per_byte=loss, loss=loss)},
            )

    conductor = take_over(database, tmp_path, submit(database, document(3) | fields), max_concurrent=1)
    while isinstance(request := conductor.next_run(), RunRequest):
        for report in reports(request):
            if not conductor.report(request.run_id, report):
                break
    with database.read() as work:
        trials = work.trials.history(conductor.experiment_id)
    found = [
        (point_of(trial.params), trial.rungs[-1].tokens // 1024 if trial.state is TrialState.PRUNED else BUDGET_STEPS)
        for trial in trials
    ]
    assert found == [(trial.point, trial.num_steps) for trial in simulated.values()]
    assert {steps for _, steps in found} > {BUDGET_STEPS}, "some were stopped early"


def test_trials_that_tune_stops_are_complete_to_optuna_and_pruned_to_ours() -> None:
    ours, tunes = Ours(0, sampler={"kind": "tpe"}, scheduler=ASHA), Tunes(0)
    for side in (ours, tunes):
        simulate(side, CURVES["overfitting"], seed=0, num_workers=2, num_steps=6 * BUDGET_STEPS)
    states = optuna.trial.TrialState
    told = tunes.searcher._ot_study.trials  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    stopped = [trial for trial in told if trial.state.is_finished() and trial.last_step != BUDGET_STEPS - 1]
    assert len(stopped) > 2
    assert {trial.state for trial in stopped} == {states.COMPLETE}
    assert sum(trial.state is TrialState.PRUNED for trial in ours.history) > 2
    known = study_of(ours.spec, number=len(ours.history), history=ours.history).trials
    for row, trial in zip(ours.history, known, strict=True):
        expected = {TrialState.PRUNED: states.PRUNED, TrialState.COMPLETED: states.COMPLETE}
        assert trial.state is expected.get(row.state, states.RUNNING)


def test_asha_with_our_tpe_beats_tunes_where_early_losses_are_lower_than_last_ones() -> None:
    curve, sums = CURVES["overfitting"], dict.fromkeys((OURS, THEIRS), 0.0)
    for arm in sums:
        for seed in range(100, 103):  # others than those of the benchmark
            trials = simulate(ARMS[arm](seed), curve, seed=seed, num_workers=4, num_steps=20 * BUDGET_STEPS)
            best = chosen(list(trials.values()), whole_only=True)
            assert best is not None
            sums[arm] += regret(curve, best.point)
    assert sums[OURS] < sums[THEIRS], sums
