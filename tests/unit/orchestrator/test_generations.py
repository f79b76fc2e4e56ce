"""Populations, sequences and orders that the samplers beyond random, grid and TPE rest on."""

import math
import random

import numpy as np
import pytest
from scipy.stats import qmc

from orchestrator.samplers import CMAESSampler
from orchestrator.search.cma import adapted, cma_point, population_size
from orchestrator.search.draw import place_of, value_at
from orchestrator.search.generations import generations
from orchestrator.search.grid import grid_size
from orchestrator.search.propose import propose, study_of
from orchestrator.search.shuffle import shuffled
from orchestrator.spec import ExperimentSpec, FloatDomain, IntDomain
from orchestrator.states import Cause, TrialState
from orchestrator.store.records import TrialRecord
from tests.support.records import trial_record
from tests.support.specs import experiment_spec

NUMBERS = {
    "optimizer.lr": {"float": [1e-4, 1e-2], "log": True},
    "model.moe.balancing.0.coefficient": {"float": [0.01, 0.5]},
    "seed": {"int": [0, 200]},
}
BALANCING = {
    "model.moe.balancing": {
        "options": {"none": [], "bias": [{"kind": "loss_free_bias", "update_rate": {"float": [0.001, 0.01]}}]}
    }
}


def bowl(trial_params: dict[str, object]) -> float:
    """Smallest at lr = 10^-2.5, coefficient = 0.1."""
    rate, coefficient = trial_params["optimizer.lr"], trial_params["model.moe.balancing.0.coefficient"]
    assert isinstance(rate, float)
    assert isinstance(coefficient, float)
    return (math.log10(rate) + 2.5) ** 2 + (4 * (coefficient - 0.1)) ** 2


def sweep(spec: ExperimentSpec, num_trials: int) -> list[TrialRecord]:
    """A sweep with one trial at a time."""
    history: list[TrialRecord] = []
    for number in range(num_trials):
        proposal = propose(spec, number=number, history=history)
        assert proposal is not None
        history.append(trial_record(spec, number, proposal.params, objective=bowl(dict(proposal.params))))
    return history


def numbered(spec: ExperimentSpec, number: int, asked: int, finished: int | None, **fields: object) -> TrialRecord:
    params = {"optimizer.lr": 0.001, "model.moe.balancing.0.coefficient": 0.1, "seed": number}
    state = TrialState.RUNNING if finished is None else TrialState.COMPLETED
    values = {"state": state, "objective": 1.0, "asked_sequence": asked, "finished_sequence": finished} | fields
    return trial_record(spec, number, params, **values)  # type: ignore[arg-type]  # fields of several types


def test_generation_ends_when_enough_of_its_trials_have_completed_before_the_ask() -> None:
    spec = experiment_spec(space=NUMBERS, num_trials=50)
    trials = [
        numbered(spec, 0, asked=1, finished=9),
        numbered(spec, 1, asked=2, finished=4),
        numbered(spec, 2, asked=3, finished=20),  # a straggler: it belongs to the first generation and comes too late
        numbered(spec, 3, asked=5, finished=6, state=TrialState.FAILED, cause=Cause.DIVERGED, objective=None),
        numbered(spec, 4, asked=10, finished=21),
        numbered(spec, 5, asked=11, finished=22),
    ]
    found = generations(spec, trials, number=6, size=2)
    assert found.of_trial == {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 6: 2}
    assert [[trial.number for trial in members] for members in found.members] == [[0, 1], [4, 5]]
    # Nothing that came later changes what was known then.
    assert generations(spec, trials[:4], number=4, size=2).of_trial[4] == 1


def test_generations_of_a_synchronous_experiment_depend_on_batches_not_on_arrivals() -> None:
    spec = experiment_spec(space=NUMBERS, num_trials=50, synchronous=True, batch_size=3)
    orders = (range(6), reversed(range(6)))
    found = [
        generations(
            spec,
            [numbered(spec, number, asked=number, finished=50 + place) for number, place in enumerate(order)],
            number=6,
            size=3,
        )
        for order in orders
    ]
    assert found[0].of_trial == found[1].of_trial == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 1, 6: 2}


@pytest.mark.parametrize("kind", ["cmaes", "nsga2", "gp", "qmc"])
def test_proposal_depends_on_the_rows_not_on_their_order_or_on_later_ones(kind: str) -> None:
    sampler = {"kind": kind} | ({"population_size": 5} if kind in ("cmaes", "nsga2") else {})
    spec = experiment_spec(space=NUMBERS, sampler=sampler, num_trials=50, seed=3)
    history = sweep(spec, 16)
    shuffled_rows = random.Random(0).sample(history, len(history))
    for number in (0, 7, 15):
        again = propose(spec, number=number, history=shuffled_rows)
        assert again is not None
        assert again.params == history[number].params
    other = experiment_spec(space=NUMBERS, sampler=sampler, num_trials=50, seed=4)
    elsewhere = propose(other, number=15, history=history)
    assert elsewhere is not None
    assert elsewhere.params != history[15].params


@pytest.mark.parametrize(("kind", "population"), [("cmaes", 6), ("nsga2", 8)])
def test_population_closes_in_on_the_minimum(kind: str, population: int) -> None:
    sampler = {"kind": kind, "population_size": population}
    spec = experiment_spec(space=NUMBERS, sampler=sampler, num_trials=200)
    values = [trial.objective or 0.0 for trial in sweep(spec, 90)]
    assert sorted(values[-20:])[10] < sorted(values[:20])[10] / 2


def test_first_cma_points_surround_the_middle_and_generations_have_the_papers_size() -> None:
    spec = experiment_spec(space=NUMBERS | BALANCING, sampler={"kind": "cmaes"}, num_trials=500)
    sampler = CMAESSampler()
    # What has a condition or is an option is not adapted.
    assert [parameter.name for parameter in adapted(spec)] == sorted(NUMBERS)
    assert population_size(spec, sampler) == 4 + 3  # 3 ln 3 = 3.3
    points = [cma_point(spec, sampler, number=number, history=[]) for number in range(200)]
    rates = np.log10([float(str(point["optimizer.lr"])) for point in points])
    assert abs(rates.mean() + 3) < 0.1
    assert abs(rates.std() - 2 / 6) < 0.08
    assert {point["model.moe.balancing"] for point in points} == {"none", "bias"}


def test_maximizing_turns_cma_around() -> None:
    up = experiment_spec(space=NUMBERS, sampler={"kind": "cmaes"}, num_trials=50, objective={"direction": "maximize"})
    down = experiment_spec(space=NUMBERS, sampler={"kind": "cmaes"}, num_trials=50)
    history = sweep(down, 9)
    turned = [trial_record(up, trial.number, trial.params, objective=-(trial.objective or 0.0)) for trial in history]
    assert propose(up, number=9, history=turned) == propose(down, number=9, history=history)
    assert propose(up, number=9, history=history) != propose(down, number=9, history=history)


def test_gaussian_process_leaves_points_that_cannot_run() -> None:
    spec = experiment_spec(space={"optimizer.lr": {"float": [0.1, 1.0]}}, sampler={"kind": "gp"}, num_trials=60)
    history: list[TrialRecord] = []
    for number in range(26):
        proposal = propose(spec, number=number, history=history)
        assert proposal is not None
        rate = float(str(proposal.params["optimizer.lr"]))
        # The objective falls towards 0.5, and beyond it nothing runs.
        diverges = rate > 0.5
        history.append(
            trial_record(
                spec,
                number,
                proposal.params,
                state=TrialState.FAILED if diverges else TrialState.COMPLETED,
                cause=Cause.DIVERGED if diverges else None,
                objective=None if diverges else 1 - rate,
            )
        )
    late = history[-8:]
    assert sum(trial.state is TrialState.FAILED for trial in late) <= 4
    assert min(trial.objective for trial in history if trial.objective is not None) < 0.53


def test_gaussian_process_is_told_of_failures_as_worst_and_violating() -> None:
    spec = experiment_spec(space={"optimizer.lr": {"float": [0.1, 1.0]}}, sampler={"kind": "gp"}, num_trials=60)
    good = [trial_record(spec, number, {"optimizer.lr": 0.2}, objective=float(number)) for number in range(3)]
    failed = trial_record(
        spec, 3, {"optimizer.lr": 0.9}, state=TrialState.FAILED, cause=Cause.OUT_OF_MEMORY, objective=None
    )
    told = study_of(spec, number=4, history=[*good, failed]).trials[3]
    assert (told.value, dict(told.constraints)) == (2.0, {"runs": 1.0})
    assert study_of(spec, number=1, history=[failed]).trials == []
    (alone,) = study_of(spec, number=4, history=[failed]).trials
    assert alone.value is None


@pytest.mark.parametrize("sequence", ["sobol", "halton"])
def test_low_discrepancy_points_cover_the_space_more_evenly_than_random_ones(sequence: str) -> None:
    discrepancies: dict[str, float] = {}
    for sampler in ({"kind": "qmc", "sequence": sequence}, {"kind": "random"}):
        spec = experiment_spec(space=NUMBERS, sampler=sampler, num_trials=64)
        proposals = [propose(spec, number=number, history=[]) for number in range(64)]
        places = [
            [place_of(parameter.domain, proposal.params[parameter.name]) for parameter in adapted(spec)]  # type: ignore[arg-type]  # all of them numbers
            for proposal in proposals
            if proposal is not None
        ]
        discrepancies[sampler["kind"]] = float(qmc.discrepancy(np.clip(places, 0, 1), method="CD"))
    assert discrepancies["qmc"] < discrepancies["random"] / 3


def test_brute_force_visits_the_whole_grid_once_in_an_order_of_the_seed() -> None:
    space = {"model.moe.top_k": {"int": [1, 4]}, "seed": {"int": [0, 24]}}
    orders = []
    for seed in (0, 1):
        spec = experiment_spec(space=space, sampler={"kind": "brute_force"}, num_trials=None, seed=seed)
        proposals = [propose(spec, number=number, history=[]) for number in range(grid_size(spec))]
        orders.append([str(proposal.params) for proposal in proposals if proposal is not None])
        assert len(set(orders[-1])) == len(orders[-1]) == 100
        assert propose(spec, number=100, history=[]) is None
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000])
def test_shuffled_is_a_permutation(size: int) -> None:
    order = [shuffled(index, size, seed=5) for index in range(size)]
    assert sorted(order) == list(range(size))
    assert size < 7 or order != list(range(size))


@pytest.mark.parametrize(
    "domain",
    [
        IntDomain(int=(3, 40)),
        IntDomain(int=(3, 40), step=5),
        IntDomain(int=(1, 300), log=True),
        FloatDomain(float=(0.1, 0.7), step=0.1),
        FloatDomain(float=(-2.0, 3.0)),
        FloatDomain(float=(1e-5, 1.0), log=True),
    ],
)
def test_place_of_a_value_gives_the_value_back(domain: IntDomain | FloatDomain) -> None:
    for index in range(100):
        value = value_at(domain, (index + 0.5) / 100)
        assert isinstance(value, int | float)
        assert value_at(domain, place_of(domain, value)) == pytest.approx(value, rel=1e-12)
