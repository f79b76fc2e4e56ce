"""Warm starts: which trials of other experiments are used, why others are not, and that they are told as past."""

from dataclasses import asdict
from typing import Any

import optuna
import pytest

from orchestrator.admission import admit
from orchestrator.errors import SpecRejected
from orchestrator.search.past import past_of
from orchestrator.search.propose import propose, study_of
from orchestrator.search.warm_start import Source, WarmStart, warm_start
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, TrialState
from orchestrator.store.records import TrialKind, TrialRecord
from tests.support.records import rung_record, trial_record
from tests.support.specs import experiment_document, experiment_spec, train_document

LR = {"float": [1e-4, 1e-2], "log": True}
TOP_K = {"int": [1, 4]}


def source(spec: ExperimentSpec, *trials: TrialRecord) -> Source:
    return Source(experiment_id="exp_other", spec=spec, trials=trials)


def started(spec: ExperimentSpec, *sources: Source) -> WarmStart:
    return warm_start(spec, sources)


def lr_trial(spec: ExperimentSpec, number: int, rate: float, objective: float | None, **fields: Any) -> TrialRecord:
    return trial_record(spec, number, {"optimizer.lr": rate}, objective=objective, **fields)


def test_trials_in_the_space_are_used_and_others_are_named_with_the_reason() -> None:
    other = experiment_spec(space={"optimizer.lr": LR}, baselines=[{"name": "base"}])
    here = experiment_spec(space={"optimizer.lr": {"float": [1e-3, 1e-2], "log": True}}, sampler={"kind": "tpe"})
    stopped = {"state": TrialState.PRUNED, "cause": Cause.USER}
    found = started(
        here,
        source(
            other,
            trial_record(other, 0, None, objective=1.0),
            lr_trial(other, 1, 2e-3, 2.5),
            lr_trial(other, 2, 5e-4, 2.0),
            lr_trial(other, 3, 6e-4, 2.0),
            lr_trial(other, 4, 3e-3, 2.75, state=TrialState.PRUNED, rungs=(rung_record(4, 2.75),)),
            lr_trial(other, 5, 4e-3, None, state=TrialState.FAILED, cause=Cause.DIVERGED),
            lr_trial(other, 6, 4e-3, None, state=TrialState.FAILED, cause=Cause.ERROR),
            lr_trial(other, 7, 4e-3, None, state=TrialState.RUNNING),
            lr_trial(other, 8, 4e-3, 2.0, **stopped),
        ),
    )
    assert [trial.number for trial in found.trials] == [1, 4, 5]
    assert [(skipped.num_trials, skipped.reason) for skipped in found.skipped] == [
        (2, "ended without a result"),
        (1, "not ended"),
        (2, "optimizer.lr is outside of the space"),
    ]
    assert found.warnings == ()


def test_they_are_told_before_the_first_trial_as_what_they_are() -> None:
    spec = experiment_spec(space={"optimizer.lr": LR}, sampler={"kind": "tpe"})
    pruned = lr_trial(spec, 1, 3e-3, 2.75, state=TrialState.PRUNED, rungs=(rung_record(1, 2.75),))
    found = started(spec, source(spec, lr_trial(spec, 0, 2e-3, 2.5), pruned))
    own = lr_trial(spec, 0, 5e-3, 2.0)
    told = study_of(spec, number=1, history=past_of(spec, [own], warm=found)).trials
    states = optuna.trial.TrialState
    assert [trial.state for trial in told] == [states.COMPLETE, states.PRUNED, states.COMPLETE]
    assert [trial.value for trial in told if trial.state is states.COMPLETE] == [2.5, 2.0]
    assert told[1].intermediate_values == {1000: 2.75}


def test_what_was_not_searched_is_read_off_the_configuration() -> None:
    base = train_document()
    base["optimizer"] = {"lr": 0.002}
    other = experiment_spec(base=base, space={"model.moe.top_k": TOP_K})
    here = experiment_spec(space={"optimizer.lr": LR, "model.moe.top_k": TOP_K}, sampler={"kind": "tpe"})
    found = started(here, source(other, trial_record(other, 0, {"model.moe.top_k": 1}, objective=2.0)))
    assert [trial.params for trial in found.trials] == [{"model.moe.top_k": 1, "optimizer.lr": 0.002}]
    assert found.warnings == ()


def test_what_is_fixed_here_has_to_be_as_it_was_there() -> None:
    other = experiment_spec(space={"optimizer.lr": LR, "model.moe.top_k": TOP_K})
    here = experiment_spec(space={"optimizer.lr": LR}, sampler={"kind": "tpe"})
    points = ({"optimizer.lr": 1e-3, "model.moe.top_k": top_k} for top_k in (2, 3))
    trials = [trial_record(other, number, point, objective=2.0) for number, point in enumerate(points)]
    found = started(here, source(other, *trials))
    assert [trial.params for trial in found.trials] == [{"optimizer.lr": 1e-3}]  # the base has top_k=2
    assert [skipped.reason for skipped in found.skipped] == ["model.moe.top_k was searched there and is fixed here"]


def test_option_that_was_not_searched_is_not_guessed() -> None:
    options = {
        "options": {"none": [], "loss": [{"kind": "load_balancing_loss", "coefficient": {"float": [0.001, 0.1]}}]}
    }
    here = experiment_spec(space={"model.moe.balancing": options}, sampler={"kind": "tpe"})
    other = experiment_spec(space={"optimizer.lr": LR})
    found = started(here, source(other, lr_trial(other, 0, 1e-3, 2.0)))
    assert [skipped.reason for skipped in found.skipped] == ["model.moe.balancing was not searched there"]
    assert "starts cold" in found.warnings[0]


def test_another_objective_tells_nothing_and_another_base_is_a_warning() -> None:
    here = experiment_spec(space={"optimizer.lr": LR}, sampler={"kind": "tpe"})
    by_loss = experiment_spec(space={"optimizer.lr": LR}, objective={"metric": "eval/loss"})
    found = started(here, source(by_loss, lr_trial(by_loss, 0, 1e-3, 2.0)))
    assert [skipped.reason for skipped in found.skipped] == ["judged by another objective"]
    longer = train_document(loop={"budget_tokens": 32_768, "global_batch_size": 8, "micro_batch_size": 8}, seed=5)
    other = experiment_spec(base=longer, space={"optimizer.lr": LR})
    found = started(here, source(other, lr_trial(other, 0, 1e-3, 2.0)))
    assert len(found.trials) == 1
    assert found.warnings == (
        "warm_start: trials of exp_other ran with another loop.budget_tokens than base has, so their values may not "
        "compare with those of this experiment",
    )


def test_further_objective_comes_from_the_summary_or_the_other_experiment() -> None:
    further = [
        {"metric": "tokens_per_s", "direction": "maximize"},
        {"metric": "eval/loss", "domain": "legal", "direction": "minimize"},
    ]
    here = experiment_spec(space={"optimizer.lr": LR}, sampler={"kind": "tpe"}, further_objectives=further)
    other = experiment_spec(space={"optimizer.lr": LR}, further_objectives=further[1:])
    fast = {"summary": {"tokens_per_s": 500.0}}
    found = started(
        here,
        source(
            other,
            lr_trial(other, 0, 1e-3, 2.0, further_values=[1.5], **fast),
            lr_trial(other, 1, 1e-3, 2.0, further_values=[None], **fast),
        ),
    )
    assert [trial.further_values for trial in found.trials] == [[500.0, 1.5]]
    assert [skipped.reason for skipped in found.skipped] == ["without a value of eval/loss (legal)"]


@pytest.mark.parametrize("kind", ["tpe", "gp", "cmaes", "nsga2", "nsga3"])
def test_a_warm_search_begins_near_the_others_best(kind: str) -> None:
    options: dict[str, Any] = {"num_startup_trials": 10} if kind in ("tpe", "gp") else {"population_size": 8}
    space = {"optimizer.lr": {"float": [1e-4, 1e-2]}, "model.moe.balancing.0.coefficient": {"float": [0.001, 0.1]}}
    here = experiment_spec(space=space, sampler={"kind": kind} | options, num_trials=40)
    other = experiment_spec(space=space)
    trials: list[TrialRecord] = []
    for number in range(24):
        rate, coefficient = 1e-4 + (number % 6) * 1.98e-3, 0.001 + (number // 6) * 0.033
        point = {"optimizer.lr": rate, "model.moe.balancing.0.coefficient": coefficient}
        cost = ((rate - 8e-3) / 1e-2) ** 2 + (coefficient - 0.067) ** 2
        trials.append(trial_record(other, number, point, objective=cost))
    warm = started(here, source(other, *trials))

    def first(number: int, given: WarmStart | None) -> float:
        proposal = propose(here, number=number, history=past_of(here, [], warm=given))
        assert proposal is not None
        return abs(float(str(proposal.params["optimizer.lr"])) - 8e-3)

    numbers = range(3 if kind == "gp" else 12)
    assert sum(first(number, warm) for number in numbers) < sum(first(number, None) for number in numbers)


def test_copies_survive_a_database() -> None:
    import json

    spec = experiment_spec(space={"optimizer.lr": LR})
    found = started(spec, source(spec, lr_trial(spec, 0, 1e-3, 2.0, rungs=(rung_record(0, None),))))
    assert json.loads(json.dumps([asdict(trial) for trial in found.trials]))[0]["rungs"] == [[1000, None]]
    (record,) = found.records()
    assert (record.number, record.kind, record.finished_at_ms is not None) == (-1, TrialKind.SEARCH, True)


@pytest.mark.parametrize("kind", ["random", "grid", "brute_force", "qmc"])
def test_sampler_that_learns_nothing_is_refused_a_warm_start(kind: str) -> None:
    space = {"model.moe.top_k": TOP_K}
    document = experiment_document(space=space, sampler={"kind": kind}, num_trials=4, warm_start=["exp_other"])
    with pytest.raises(SpecRejected) as refused:
        admit(document, capacity=None)
    assert [(problem.pointer, problem.code) for problem in refused.value.problems] == [
        ("/warm_start", "learns_nothing")
    ]
