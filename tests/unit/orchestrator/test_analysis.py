"""What an analysis says of trials whose figures are known."""

import json
import math
from dataclasses import asdict
from typing import Any

import pytest

from orchestrator.search import analysis as analyses
from orchestrator.search.analysis import Analysis, analysis
from orchestrator.search.draw import draw
from orchestrator.search.importance import MIN_TRIALS, Importance, importances
from orchestrator.search.space import parameters
from orchestrator.spec import ExperimentSpec
from orchestrator.states import TrialState
from orchestrator.store.records import TrialRecord
from tests.support.records import trial_record
from tests.support.specs import experiment_spec

RATE, TOP_K, BALANCING = "optimizer.lr", "model.moe.top_k", "model.moe.balancing"
OPTIONS = {"none": [], "loss": [{"kind": "load_balancing_loss", "coefficient": {"float": [0.001, 0.1], "log": True}}]}
SPACE = {RATE: {"float": [1e-4, 1e-2], "log": True}, TOP_K: {"int": [1, 4]}, BALANCING: {"options": OPTIONS}}


def spec_of(**fields: Any) -> ExperimentSpec:
    return experiment_spec(**{"space": SPACE, "num_trials": 60, **fields})


def cost(params: dict[str, Any]) -> float:
    """Nearly all of it is the learning rate's."""
    return (math.log10(params[RATE]) + 3) ** 2 + 0.01 * params[TOP_K] + 0.001 * (params[BALANCING] == "none")


def sweep(spec: ExperimentSpec, num_trials: int, **fields: Any) -> list[TrialRecord]:
    points = [draw(parameters(spec), 7, number) for number in range(num_trials)]
    return [trial_record(spec, number, point, objective=cost(point), **fields) for number, point in enumerate(points)]


def of(
    found: tuple[Importance, ...], method: str, condition: str | None = None, objective: int | None = 0
) -> Importance:
    return next(one for one in found if (one.method, one.condition, one.objective) == (method, condition, objective))


def test_both_methods_find_the_parameter_that_matters_and_say_of_how_many_trials() -> None:
    spec = spec_of()
    found = importances(spec, sweep(spec, 40))
    for method in ("ped_anova", "fanova"):
        one = of(found, method)
        assert (one.problem, one.num_trials) == (None, 40)
        assert one.parameters[0].name == RATE
        assert one.parameters[0].importance > 0.6
        assert sum(parameter.importance for parameter in one.parameters) == pytest.approx(1.0)
        assert all(parameter.low <= parameter.importance <= parameter.high for parameter in one.parameters)
        assert {parameter.name for parameter in one.parameters} == set(SPACE)
        inner = of(found, method, f"{BALANCING} = loss")
        assert [parameter.name for parameter in inner.parameters] == [f"{BALANCING}.loss.0.coefficient"]
        assert f"where {BALANCING} = loss, of 40" in inner.basis


def test_importance_of_few_or_equal_trials_says_why_there_is_none() -> None:
    spec = spec_of()
    few = sweep(spec, MIN_TRIALS - 1)
    problems = {one.condition: one.problem for one in importances(spec, few)}
    assert problems[None] == f"9 completed trials; at least {MIN_TRIALS} are needed"
    equal = [trial_record(spec, trial.number, trial.params, objective=1.0) for trial in sweep(spec, 30)]
    assert of(importances(spec, equal), "fanova").problem == "all trials have the same value"
    same = [trial_record(spec, number, few[0].params, objective=float(number)) for number in range(12)]
    assert of(importances(spec, same), "ped_anova").problem == "no parameter took two values"


def test_each_objective_has_its_own_importance_and_the_front_one_too() -> None:
    spec = spec_of(
        space={RATE: SPACE[RATE], TOP_K: SPACE[TOP_K]},
        further_objectives=[{"metric": "tokens_per_s", "direction": "maximize"}],
    )
    trials = [
        trial_record(
            spec,
            number,
            point,
            objective=(math.log10(float(str(point[RATE]))) + 3) ** 2,
            further_values=[1000.0 / int(str(point[TOP_K]))],
        )
        for number, point in enumerate(draw(parameters(spec), 3, number) for number in range(24))
    ]
    found = importances(spec, trials)
    assert [(one.method, one.objective) for one in found] == [
        ("ped_anova", 0),
        ("fanova", 0),
        ("ped_anova", 1),
        ("fanova", 1),
        ("ped_anova", None),
    ]
    assert of(found, "fanova", objective=0).parameters[0].name == RATE
    assert of(found, "fanova", objective=1).parameters[0].name == TOP_K
    assert of(found, "ped_anova", objective=1).parameters[0].name == TOP_K


def test_best_so_far_is_in_order_of_ends_and_counts_all_tokens() -> None:
    spec = spec_of(objective={"constraints": [{"metric": "tokens_per_s", "at_least": 100}]})
    point = draw(parameters(spec), 0, 0)
    rows = [(0, 3.0, 9, 500.0), (1, 2.0, 5, 500.0), (2, 2.5, 6, 500.0), (3, 1.0, 7, 50.0), (4, 1.5, 8, 500.0)]
    trials = [
        trial_record(
            spec,
            number,
            point,
            objective=value,
            finished_sequence=end,
            objective_tokens=1000,
            summary={"tokens_per_s": speed},
        )
        for number, value, end, speed in rows
    ]
    pruned = trial_record(
        spec, 5, point, state=TrialState.PRUNED, objective=0.1, finished_sequence=4, objective_tokens=300
    )
    found = analysis(spec, [*trials, pruned])
    assert [(one.number, one.objective, one.num_completed, one.tokens) for one in found.best_so_far] == [
        (1, 2.0, 1, 1300),
        (4, 1.5, 3, 4300),
    ]
    assert found.best_basis.endswith("; 1 beyond a limit of objective.constraints are left out")


def test_slices_of_many_trials_are_a_sample_with_the_best_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyses, "MAX_SLICE", 10)
    spec = spec_of(space={RATE: SPACE[RATE]})
    points = [draw(parameters(spec), 5, number) for number in range(37)]
    trials = [
        trial_record(spec, number, point, objective=0.0 if number == 36 else 1.0) for number, point in enumerate(points)
    ]
    slices = analysis(spec, trials).slices
    assert (slices.num_trials, slices.num_eligible) == (11, 37)
    assert slices.numbers[-1] == 36
    assert slices.params[RATE] == tuple(points[number][RATE] for number in slices.numbers)


def test_analysis_is_plain_json_and_of_nothing_it_is_empty() -> None:
    spec = spec_of(further_objectives=[{"metric": "tokens_per_s", "direction": "maximize"}])
    empty = analysis(spec, [])
    assert (empty.best_so_far, empty.front, empty.num_trials) == ((), (), 0)
    both = [
        trial_record(spec, trial.number, trial.params, objective=trial.objective, further_values=[float(trial.number)])
        for trial in sweep(spec, 5)
    ]
    found: Analysis = analysis(spec, both)
    assert json.loads(json.dumps(asdict(found)))["num_completed"] == 5
    assert both[4].id in {point.trial_id for point in found.front}
