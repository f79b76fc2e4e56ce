"""Proposals: what the sampler is told, and that they depend on nothing else."""

import random

import optuna
import pytest

from orchestrator.search.grid import grid_point, grid_size
from orchestrator.search.propose import propose, study_of
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, TrialState
from orchestrator.store.records import TrialRecord
from tests.support.records import rung_record, trial_record
from tests.support.specs import experiment_spec

LR = {"optimizer.lr": {"float": [1e-4, 1e-2], "log": True}}
BALANCING = {
    "model.moe.balancing": {
        "options": {
            "none": [],
            "switch": [{"kind": "load_balancing_loss", "coefficient": {"float": [1e-4, 1e-1], "log": True}}],
            "bias": [{"kind": "loss_free_bias", "update_rate": {"choice": [0.001, 0.01]}}],
        }
    }
}
TPE = {"kind": "tpe", "num_startup_trials": 4}


def tpe_spec(**fields: object) -> ExperimentSpec:
    return experiment_spec(space=LR | BALANCING, sampler=TPE, num_trials=50, **fields)


def history_of(spec: ExperimentSpec, num_trials: int) -> list[TrialRecord]:
    """A sweep played to its end: proposals in order, each completed with a figure that depends on its point."""
    history: list[TrialRecord] = []
    for number in range(num_trials):
        proposal = propose(spec, number=number, history=history)
        assert proposal is not None
        learning_rate = proposal.params["optimizer.lr"]
        assert isinstance(learning_rate, float)
        history.append(trial_record(spec, number, proposal.params, objective=abs(learning_rate - 0.003)))
    return history


def test_pruned_trial_is_told_as_pruned_with_its_values_at_the_rungs() -> None:
    spec = tpe_spec()
    rungs = (rung_record(0, 2.5, rung=0), rung_record(0, 2.25, rung=1))
    params = {"optimizer.lr": 0.001, "model.moe.balancing": "none"}
    pruned = trial_record(spec, 0, params, state=TrialState.PRUNED, objective=2.25, rungs=rungs)
    (told,) = study_of(spec, number=1, history=[pruned]).trials
    assert told.state is optuna.trial.TrialState.PRUNED
    assert told.value is None or told.value != 2.5
    assert told.intermediate_values == {1000: 2.5, 3000: 2.25}


@pytest.mark.parametrize(
    ("state", "cause", "objective", "told_as", "violates"),
    [
        (TrialState.COMPLETED, None, 2.0, optuna.trial.TrialState.COMPLETE, False),
        (TrialState.RUNNING, None, None, optuna.trial.TrialState.RUNNING, False),
        (TrialState.RETRYING, Cause.PROCESS_LOST, None, optuna.trial.TrialState.RUNNING, False),
        (TrialState.QUEUED, None, None, optuna.trial.TrialState.RUNNING, False),
        (TrialState.INFEASIBLE, Cause.DOES_NOT_FIT, None, optuna.trial.TrialState.PRUNED, True),
        (TrialState.FAILED, Cause.DIVERGED, None, optuna.trial.TrialState.PRUNED, True),
        (TrialState.FAILED, Cause.OUT_OF_MEMORY, None, optuna.trial.TrialState.PRUNED, True),
        (TrialState.FAILED, Cause.ERROR, None, optuna.trial.TrialState.FAIL, False),
        (TrialState.FAILED, Cause.RETRIES_EXHAUSTED, None, optuna.trial.TrialState.FAIL, False),
        (TrialState.CANCELLED, Cause.USER, None, optuna.trial.TrialState.FAIL, False),
        (TrialState.COMPLETED, None, None, optuna.trial.TrialState.FAIL, False),
    ],
)
def test_trial_is_told_as_what_became_of_it(
    state: TrialState, cause: Cause | None, objective: float | None, told_as: optuna.trial.TrialState, violates: bool
) -> None:
    spec = tpe_spec()
    params = {"optimizer.lr": 0.001, "model.moe.balancing": "none"}
    trial = trial_record(spec, 0, params, state=state, cause=cause, objective=objective)
    (told,) = study_of(spec, number=1, history=[trial]).trials
    assert told.state is told_as
    assert any(value > 0 for value in told.constraints.values()) is violates


def test_baselines_are_not_told() -> None:
    spec = tpe_spec(baselines=[{"name": "base"}])
    assert study_of(spec, number=1, history=[trial_record(spec, 0, None, objective=1.0)]).trials == []


def test_proposal_depends_on_the_rows_not_on_their_order_or_on_later_ones() -> None:
    spec = tpe_spec()
    history = history_of(spec, 12)
    shuffled = random.Random(0).sample(history, len(history))
    for number in (0, 3, 7, 11):
        again = propose(spec, number=number, history=shuffled)
        assert again is not None
        assert again.params == history[number].params


def test_tpe_learns_from_what_it_is_told() -> None:
    spec = experiment_spec(space=LR, sampler=TPE, num_trials=60)
    history = history_of(spec, 40)
    early = [trial.objective for trial in history[:4]]
    late = [trial.objective for trial in history[-10:]]
    assert sorted(late)[5] < sorted(early)[2]


def test_tpe_avoids_what_cannot_run() -> None:
    spec = experiment_spec(space={"optimizer.lr": {"float": [0.0, 1.0], "step": 0.01}}, sampler=TPE, num_trials=100)
    history: list[TrialRecord] = []
    for number in range(40):
        proposal = propose(spec, number=number, history=history)
        assert proposal is not None
        if proposal.config is None:
            continue
        diverges = float(str(proposal.params["optimizer.lr"])) > 0.5
        history.append(
            trial_record(
                spec,
                number,
                proposal.params,
                state=TrialState.FAILED if diverges else TrialState.COMPLETED,
                cause=Cause.DIVERGED if diverges else None,
                objective=None if diverges else 1.0,
            )
        )
    late = [trial for trial in history if trial.number >= 20]
    assert sum(trial.state is TrialState.FAILED for trial in late) < len(late) / 4


def test_invalid_point_is_proposed_with_its_problem() -> None:
    spec = experiment_spec(space={"model.moe.top_k": {"choice": [9]}}, num_trials=1)
    proposal = propose(spec, number=0, history=[])
    assert proposal is not None
    assert proposal.config is None
    assert proposal.problem == "model.moe: top_k=9 exceeds num_experts=4; lower it or add experts"


def test_synchronous_proposals_ignore_how_far_their_own_batch_has_come() -> None:
    spec = tpe_spec(synchronous=True, batch_size=4)
    history = history_of(spec, 10)
    first_of_batch = 8
    running = [
        trial_record(spec, trial.number, trial.params, state=TrialState.RUNNING)
        if trial.number >= first_of_batch
        else trial
        for trial in history
    ]
    assert propose(spec, number=10, history=running) == propose(spec, number=10, history=history)


def test_synchronous_batch_waits_for_the_one_before() -> None:
    spec = tpe_spec(synchronous=True, batch_size=2)
    params = {"optimizer.lr": 0.001, "model.moe.balancing": "none"}
    history = [trial_record(spec, number, params, state=TrialState.RUNNING) for number in range(2)]
    with pytest.raises(ValueError, match="trial 2 opens a batch, but trial 0 of an earlier one has not ended"):
        propose(spec, number=2, history=history)


def test_grid_covers_every_combination_once() -> None:
    space = {
        "model.moe.top_k": {"int": [1, 4], "step": 2},
        "optimizer.lr": {"float": [0.1, 0.3], "step": 0.1},
        "model.moe.balancing": {
            "options": {"none": [], "bias": [{"kind": "loss_free_bias", "update_rate": {"choice": [0.001, 0.01]}}]}
        },
    }
    spec = experiment_spec(space=space, sampler={"kind": "grid"}, num_trials=None)
    points = [grid_point(spec, index) for index in range(grid_size(spec))]
    assert grid_size(spec) == 2 * 3 * (1 + 2)
    assert len({str(point) for point in points}) == len(points)
    assert {point["optimizer.lr"] for point in points} == {0.1, 0.2, 0.3}
    assert propose(spec, number=len(points), history=[]) is None


def test_huge_grid_is_entered_at_any_index() -> None:
    space = {"seed": {"int": [0, 2**31 - 1]}, "loop.budget_tokens": {"int": [1, 10**15]}}
    spec = experiment_spec(space=space, sampler={"kind": "grid"}, num_trials=None)
    assert grid_size(spec) == 2**31 * 10**15
    assert grid_point(spec, grid_size(spec) - 1) == {"seed": 2**31 - 1, "loop.budget_tokens": 10**15}


def test_search_ends_after_its_trials_whatever_the_baselines() -> None:
    spec = experiment_spec(num_trials=3, baselines=[{"name": "a"}, {"name": "b"}])
    assert propose(spec, number=4, history=[]) is not None
    assert propose(spec, number=5, history=[]) is None


def test_adding_a_parameter_leaves_the_draws_of_the_others() -> None:
    narrow = experiment_spec(space=LR)
    wide = experiment_spec(space=LR | BALANCING)
    first, second = propose(narrow, number=3, history=[]), propose(wide, number=3, history=[])
    assert first is not None
    assert second is not None
    assert first.params["optimizer.lr"] == second.params["optimizer.lr"]
