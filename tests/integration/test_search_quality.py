"""Our proposals against Optuna's own: the same seeds and the same past give the same points, the same budget as good a
best.

A study of ours is rebuilt from rows for every trial; Optuna's lives in memory from the first trial to the last.
"""

import math
import statistics
import warnings
from collections.abc import Callable

import optuna
import pytest

from orchestrator.search.draw import derived_seed
from orchestrator.search.propose import propose
from orchestrator.spec import ExperimentSpec
from orchestrator.store.records import TrialRecord
from tests.support.records import trial_record
from tests.support.specs import experiment_spec

COEFFICIENT, RATE = "model.moe.balancing.0.coefficient", "optimizer.lr"
SPACE = {COEFFICIENT: {"float": [0.01, 1.0]}, RATE: {"float": [1e-4, 1e-2], "log": True}}

Function = Callable[[float, float], float]


def sphere(x: float, y: float) -> float:
    return (x - 0.3) ** 2 + (y - 0.6) ** 2


def branin(x: float, y: float) -> float:
    """Dixon and Szegoe 1978, scaled to the unit square: three equal minima of 0.3979."""
    a, b = 15 * x - 5, 15 * y
    bend = b - 5.1 / (4 * math.pi**2) * a**2 + 5 / math.pi * a - 6
    return bend**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(a) + 10


def valley(x: float, y: float) -> float:
    """Rosenbrock 1960, from -2 to 2: a bent valley, with its minimum of 0 at (0.75, 0.75)."""
    a, b = 4 * x - 2, 4 * y - 2
    return 100 * (b - a**2) ** 2 + (1 - a) ** 2


FUNCTIONS = [sphere, branin, valley]


def value_of(function: Function, coefficient: float, rate: float) -> float:
    """The function with both parameters scaled to [0, 1], as the samplers see them."""
    return function((coefficient - 0.01) / 0.99, math.log10(rate / 1e-4) / 2)


def ours(spec: ExperimentSpec, function: Function, num_trials: int) -> list[TrialRecord]:
    history: list[TrialRecord] = []
    for number in range(num_trials):
        proposal = propose(spec, number=number, history=history)
        assert proposal is not None
        coefficient, rate = proposal.params[COEFFICIENT], proposal.params[RATE]
        assert isinstance(coefficient, float)
        assert isinstance(rate, float)
        value = value_of(function, coefficient, rate)
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
            coefficient = trial.suggest_float(COEFFICIENT, 0.01, 1.0)
            rate = trial.suggest_float(RATE, 1e-4, 1e-2, log=True)
            study.tell(trial, value_of(function, coefficient, rate))
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


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", SAMPLERS)
def test_points_are_those_of_optuna_run_directly(kind: str, function: Function) -> None:
    fields, sampler, num_trials = SAMPLERS[kind]
    spec = experiment_spec(space=SPACE, sampler={"kind": kind} | fields, num_trials=num_trials, seed=7)
    direct = theirs(lambda number: sampler(derived_seed(7, number)), function, num_trials)
    assert [trial.params for trial in ours(spec, function, num_trials)] == [trial.params for trial in direct]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_cma_finds_as_good_a_best_as_optunas(function: Function) -> None:
    num_seeds, num_trials = 15, 60

    def best_ours(seed: int) -> float:
        spec = experiment_spec(space=SPACE, sampler={"kind": "cmaes"}, num_trials=num_trials, seed=seed)
        return min(trial.objective for trial in ours(spec, function, num_trials) if trial.objective is not None)

    def best_theirs(seed: int) -> float:
        sampler = optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        return min(trial.value for trial in theirs(lambda _: sampler, function, num_trials) if trial.value is not None)

    offset = 0.3979 - 1e-4 if function is branin else 0.0
    one = [math.log10(best_ours(seed) - offset) for seed in range(num_seeds)]
    other = [math.log10(best_theirs(seed) - offset) for seed in range(num_seeds)]
    # Standard error of the difference of two means; twice it would be exceeded by chance once in 20.
    error = math.sqrt((statistics.variance(one) + statistics.variance(other)) / num_seeds)
    assert abs(statistics.fmean(one) - statistics.fmean(other)) < 2 * error, (one, other)
