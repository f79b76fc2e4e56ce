"""What a trial's evaluations come to, and limits on its figures."""

import math

import pytest
from pydantic import ValidationError

from orchestrator.admission import admit
from orchestrator.errors import SpecRejected
from orchestrator.objective import Objective
from orchestrator.samplers import CMAESSampler
from orchestrator.search.cma import cma_point
from orchestrator.search.outcome import excesses, reduced, violations
from orchestrator.search.propose import propose, study_of
from orchestrator.search.rank import compare
from orchestrator.spec import ExperimentSpec, Scalar
from orchestrator.states import Cause, TrialState
from orchestrator.store.records import TrialRecord
from tests.support.records import trial_record
from tests.support.specs import experiment_document, experiment_spec

LIMITS = [{"metric": "router/max_violation", "at_most": 0.5}, {"metric": "tokens_per_s", "at_least": 1000}]
VALUES = {1000: 3.0, 4000: 1.5, 2000: 2.0, 3000: 1.0}


@pytest.mark.parametrize(
    ("value", "values", "expected"),
    [
        ({"kind": "last"}, VALUES, (1.5, 4000)),
        ({"kind": "best"}, VALUES, (1.0, 3000)),
        ({"kind": "best"}, {1000: 1.0, 2000: 1.0}, (1.0, 1000)),
        ({"kind": "best"}, {1000: math.nan, 2000: 2.0, 3000: -math.inf}, (2.0, 2000)),
        ({"kind": "mean", "num_evaluations": 3}, VALUES, (1.5, 4000)),
        ({"kind": "mean", "num_evaluations": 9}, VALUES, (1.875, 4000)),
        ({"kind": "at", "tokens": 2500}, VALUES, (1.0, 3000)),
        ({"kind": "at", "tokens": 2000}, VALUES, (2.0, 2000)),
        ({"kind": "at", "tokens": 5000}, VALUES, (1.5, 4000)),
        ({"kind": "best"}, {}, None),
    ],
)
def test_evaluations_are_reduced_to_one_value(
    value: dict[str, object], values: dict[int, float], expected: tuple[float, int] | None
) -> None:
    assert reduced(Objective.model_validate({"value": value}), values) == expected


def test_best_is_the_largest_where_the_objective_is_maximised() -> None:
    assert reduced(Objective.model_validate({"value": {"kind": "best"}, "direction": "maximize"}), VALUES) == (
        3.0,
        1000,
    )


def test_a_mean_with_a_value_that_is_not_finite_is_not_finite() -> None:
    found = reduced(Objective.model_validate({"value": {"kind": "mean"}}), {1000: 1.0, 2000: math.nan})
    assert found is not None
    assert math.isnan(found[0])


@pytest.mark.parametrize("limits", [{}, {"at_most": 1, "at_least": 0}])
def test_a_constraint_has_one_limit(limits: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="give one of them"):
        Objective.model_validate({"constraints": [{"metric": "tokens_per_s"} | limits]})


def limited(**sampler: object) -> ExperimentSpec:
    return experiment_spec(objective={"constraints": LIMITS}, sampler={"kind": "tpe"} | sampler, num_trials=90)


def trial(
    spec: ExperimentSpec, number: int, objective: float | None, violation: float | None, speed: float = 2000, **fields
) -> TrialRecord:
    params: dict[str, Scalar] = {"optimizer.lr": 1e-3 * (1 + number / 100)}
    summary = {"worst_max_violation": violation, "tokens_per_s": speed}
    return trial_record(spec, number, params, objective=objective, summary=summary, **fields)


def test_excess_is_how_far_beyond_the_limit_and_a_missing_figure_keeps_to_it() -> None:
    spec = limited()
    names = ("router/max_violation <= 0.5", "tokens_per_s >= 1000")
    over = trial(spec, 0, 1.0, 0.75, speed=400)
    assert excesses(spec.objective, over) == {names[0]: 0.25, names[1]: 600}
    assert violations(spec.objective, over) == (f"{names[0]}: 0.75", f"{names[1]}: 400")
    dense = trial(spec, 0, 1.0, None)
    assert excesses(spec.objective, dense) == {names[0]: 0.0, names[1]: -1000}
    assert violations(spec.objective, dense) == ()


@pytest.mark.parametrize("kind", ["tpe", "gp", "nsga2"])
def test_samplers_are_told_of_the_limits_as_constraints(kind: str) -> None:
    spec = limited(kind=kind)
    diverged = trial(spec, 2, None, 0.25, state=TrialState.FAILED, cause=Cause.DIVERGED)
    told = study_of(spec, number=3, history=[trial(spec, 0, 1.0, 0.75), trial(spec, 1, 2.0, 0.25), diverged]).trials
    limits = [[value for name, value in one.constraints.items() if name != "runs"] for one in told]
    assert limits == [[0.25, -1000], [-0.25, -1000], [-0.25, -1000]]
    assert [one.constraints["runs"] for one in told] == [0, 0, 1]


def test_gaussian_process_without_failures_models_the_limits_alone() -> None:
    (told,) = study_of(limited(kind="gp"), number=1, history=[trial(limited(), 0, 1.0, 0.75)]).trials
    assert set(told.constraints) == {"router/max_violation <= 0.5", "tokens_per_s >= 1000"}


@pytest.mark.parametrize("kind", ["tpe", "gp", "cmaes"])
def test_search_learns_to_keep_to_a_limit(kind: str) -> None:
    # The objective falls with the learning rate, and beyond 10^-3 the router is unbalanced.
    spec = limited(kind=kind, **({"population_size": 5} if kind == "cmaes" else {"num_startup_trials": 6}))
    history: list[TrialRecord] = []
    for number in range(20 if kind == "gp" else 50):
        proposal = propose(spec, number=number, history=history)
        assert proposal is not None
        rate = math.log10(float(str(proposal.params["optimizer.lr"])))
        summary = {"worst_max_violation": 0.5 + (rate + 3), "tokens_per_s": 2000}
        history.append(trial_record(spec, number, proposal.params, objective=-rate, summary=summary))
    # The best is on the limit itself, so what is asked last may be a hair beyond it.
    late = [excesses(spec.objective, one)["router/max_violation <= 0.5"] for one in history[-10:]]
    assert sum(excess < 0.05 for excess in late) >= 5
    keeps = [one.objective for one in history if not violations(spec.objective, one) and one.objective is not None]
    assert min(keeps) < 3.15


def test_cma_depends_on_the_order_of_the_values_only() -> None:
    spec = limited(kind="cmaes", population_size=4)
    sampler = CMAESSampler(population_size=4)
    one = [trial(spec, number, value, 0.1) for number, value in enumerate((3.0, 1.0, 2.0, 9.0))]
    other = [trial(spec, number, value, 0.1) for number, value in enumerate((0.3, 0.1, 0.2, 0.4))]
    beyond = [trial(spec, 0, 0.0, 0.6), *one[1:3], trial(spec, 3, 0.0, 0.7)]
    points = [cma_point(spec, sampler, number=4, history=rows) for rows in (one, other, beyond)]
    assert points[0] == points[1] == points[2]


def test_ranking_puts_what_is_beyond_a_limit_last_and_says_so() -> None:
    spec = limited()
    comparison = compare(spec, [trial(spec, 0, 1.0, 0.75), trial(spec, 1, 2.0, 0.25), trial(spec, 2, 3.0, 0.25)])
    assert [(row.number, row.rank) for row in comparison.rows] == [(1, 1), (2, 2), (0, 3)]
    assert [row.violations for row in comparison.rows] == [(), (), ("router/max_violation <= 0.5: 0.75",)]
    expected = "Beyond a limit of objective.constraints, and ranked behind all that keep to them: trial 0."
    assert expected in comparison.caveats


def test_value_at_tokens_beyond_the_budget_is_refused() -> None:
    with pytest.raises(SpecRejected) as refused:
        admit(experiment_document(objective={"value": {"kind": "at", "tokens": 99_999}}), capacity=None)
    assert [problem.pointer for problem in refused.value.problems] == ["/objective/value/tokens"]


def test_reduction_without_evaluations_in_between_is_a_warning() -> None:
    admitted = admit(experiment_document(objective={"value": {"kind": "best"}}), capacity=None)
    assert "base.loop.evaluate_every_tokens is not set" in admitted.warnings[0]
