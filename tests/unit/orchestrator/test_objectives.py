"""Several objectives, limits relative to others, and vetoes: what is told, what is ranked, what is refused."""

import random
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.admission import admit
from orchestrator.errors import SpecRejected
from orchestrator.objective import FurtherObjective, Objective
from orchestrator.search.outcome import excesses, references, veto, violations
from orchestrator.search.pareto import dominates, front
from orchestrator.search.propose import propose, study_of
from orchestrator.search.rank import compare
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, TrialState
from orchestrator.store.records import TrialRecord
from tests.support.records import rung_record, trial_record
from tests.support.specs import experiment_document, experiment_spec

SPEED = {"metric": "tokens_per_s", "direction": "maximize"}
SPACE = {"optimizer.lr": {"float": [1e-4, 1e-2], "log": True}, "model.moe.top_k": {"int": [1, 4]}}
LR = {"optimizer.lr": 1e-3, "model.moe.top_k": 2}


def several(**fields: Any) -> ExperimentSpec:
    return experiment_spec(**{"space": SPACE, "num_trials": 60, "further_objectives": [SPEED], **fields})


def trial(
    spec: ExperimentSpec, number: int, objective: float | None, speed: float | None, **fields: Any
) -> TrialRecord:
    further = [speed] if objective is not None else None
    return trial_record(spec, number, dict(LR), objective=objective, further_values=further, **fields)


points = st.lists(st.tuples(*[st.integers(0, 3).map(float)] * 3), min_size=1, max_size=12)


@given(points=points)
def test_front_is_what_nothing_dominates(points: list[tuple[float, ...]]) -> None:
    named = {str(index): point for index, point in enumerate(points)}
    expected = {name for name, point in named.items() if not any(dominates(other, point) for other in named.values())}
    assert front(named) == expected
    assert expected


def test_all_values_are_told_in_their_directions() -> None:
    spec = several(sampler={"kind": "tpe"})
    study = study_of(spec, number=2, history=[trial(spec, 0, 2.0, 500.0), trial(spec, 1, 3.0, None)])
    assert study.directions == [optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE]
    assert study.trials[0].values == [2.0, 500.0]
    # Without a value for every objective there is nothing to learn.
    assert study.trials[1].state is optuna.trial.TrialState.FAIL


def test_pruned_trial_has_no_values_at_rungs_with_several_objectives() -> None:
    # Optuna orders pruned trials by them, and cannot with more than one.
    spec = several(sampler={"kind": "tpe", "num_startup_trials": 1})
    pruned = trial(spec, 0, None, None, state=TrialState.PRUNED, rungs=(rung_record(0, 2.5),))
    history = [pruned, trial(spec, 1, 2.0, 500.0), trial(spec, 2, 1.0, 400.0)]
    assert study_of(spec, number=3, history=history).trials[0].intermediate_values == {}
    assert propose(spec, number=3, history=history) is not None


@pytest.mark.parametrize("kind", ["tpe", "gp", "nsga2", "nsga3", "random", "qmc"])
def test_search_with_several_objectives_depends_on_the_rows_alone(kind: str) -> None:
    options = {"tpe": {"num_startup_trials": 4}, "gp": {"num_startup_trials": 4}, "nsga2": {"population_size": 4}}
    options["nsga3"] = options["nsga2"]
    spec = several(sampler={"kind": kind} | options.get(kind, {}))
    history: list[TrialRecord] = []
    last = 5 if kind == "gp" else 13
    for number in range(last + 1):
        proposal = propose(spec, number=number, history=history)
        assert proposal is not None
        if number in (3, last):
            shuffled = random.Random(number).sample(history, len(history))
            assert propose(spec, number=number, history=shuffled) == proposal
        rate, top_k = float(str(proposal.params["optimizer.lr"])), int(str(proposal.params["model.moe.top_k"]))
        if number == 4:
            state = {"state": TrialState.FAILED, "cause": Cause.DIVERGED}
            history.append(trial_record(spec, number, proposal.params, **state))
        else:
            values = {"objective": abs(rate - 0.003) + 1 / top_k, "further_values": [1000.0 / top_k]}
            history.append(trial_record(spec, number, proposal.params, **values))


def test_all_children_of_a_generation_have_the_same_parents() -> None:
    spec = several(sampler={"kind": "nsga3", "population_size": 4, "num_divisions": 1})
    # All on one front: which of them stay is drawn by lot.
    history = [trial(spec, number, 1.0 + number, 100.0 * (1 + number)) for number in range(6)]
    parents = set()
    for number in (6, 7, 8):
        study = study_of(spec, number=number, history=history)
        attributes = study._storage.get_study_system_attrs(0)
        parents.add(str(sorted(value for key, value in attributes.items() if "parent" in key)))
    assert len(parents) == 1
    assert parents != {"[]"}


def test_ranking_puts_the_front_first() -> None:
    spec = several()
    trials = [
        trial(spec, 0, 1.0, 100.0),
        trial(spec, 1, 1.5, 90.0),
        trial(spec, 2, 3.0, 200.0),
        trial(spec, 3, 2.0, None),
    ]
    comparison = compare(spec, trials)
    assert [(row.number, row.rank, row.on_front) for row in comparison.rows] == [
        (0, 1, True),
        (2, 2, True),
        (1, 3, False),
        (3, 4, False),
    ]
    assert any("Pareto front" in caveat for caveat in comparison.caveats)
    assert compare(experiment_spec(), [trial(experiment_spec(space=SPACE), 0, 1.0, None)]).rows[0].on_front is None


CAPABILITY = {"metric": "eval/bits_per_byte", "at_most": 0.02}


def measured(spec: ExperimentSpec, number: int, final: dict[str, float], **fields: Any) -> TrialRecord:
    summary = {"initial_bits_per_byte": {"legal": 2.0, "c_source": 1.0}, "bits_per_byte": final, "tokens_per_s": 900.0}
    params = fields.pop("params", dict(LR))
    return trial_record(spec, number, params, objective=final["all"], summary=summary, **fields)


@pytest.mark.parametrize(
    ("constraint", "words", "excess"),
    [
        ({}, "eval/bits_per_byte (all) <= 0.02", 1.53),
        ({"domain": "legal"}, "eval/bits_per_byte (legal) <= 0.02", 2.03),
        ({"domain": "legal", "relative_to": "start"}, "eval/bits_per_byte (legal) over the start <= 0.02", 0.03),
        ({"relative_to": "start"}, "eval/bits_per_byte (all) over the start <= 0.02", 0.03),
        ({"domain": "worst", "relative_to": "base"}, "eval/bits_per_byte (worst) over 'base' <= 0.02", 0.08),
        ({"domain": "worst", "relative_to": "gone"}, "eval/bits_per_byte (worst) over 'gone' <= 0.02", 0.0),
    ],
)
def test_capability_is_limited_by_itself_or_against_another(
    constraint: dict[str, str], words: str, excess: float
) -> None:
    objective = Objective.model_validate({"constraints": [CAPABILITY | constraint]})
    spec = experiment_spec(space=SPACE)
    baseline = measured(spec, 0, {"all": 1.5, "legal": 2.1, "c_source": 0.95}, params=None)
    own = measured(spec, 1, {"all": 1.55, "legal": 2.05, "c_source": 1.05})
    assert excesses(objective, own, references(objective, [baseline])) == {words: pytest.approx(excess)}
    pruned = measured(spec, 1, {"all": 1.55, "legal": 2.05}, state=TrialState.PRUNED)
    assert excesses(objective, pruned, references(objective, [baseline])) == {words: 0.0}


def test_limit_against_a_baseline_counts_once_it_has_completed() -> None:
    constraint = CAPABILITY | {"relative_to": "base", "veto": True}
    spec = experiment_spec(
        space=SPACE, sampler={"kind": "tpe"}, objective={"constraints": [constraint]}, baselines=[{"name": "base"}]
    )
    baseline = measured(spec, 0, {"all": 1.5}, params=None)
    running = trial_record(spec, 0, None, state=TrialState.RUNNING)
    own = measured(spec, 1, {"all": 1.75})
    name = "eval/bits_per_byte (all) over 'base' <= 0.02"
    told = [study_of(spec, number=2, history=[one, own]).trials[0].constraints[name] for one in (running, baseline)]
    assert told == [0.0, pytest.approx(0.23)]
    assert veto(spec.objective, own, references(spec.objective, [running])) is None
    assert veto(spec.objective, own, references(spec.objective, [baseline])) == f"{name}: 0.25"


def test_vetoed_trial_has_no_rank_and_is_not_on_the_front() -> None:
    limits = [{"metric": "tokens_per_s", "at_least": 1000, "veto": True}]
    spec = several(objective={"constraints": limits})
    slow, fast = ({"summary": {"tokens_per_s": speed}} for speed in (900.0, 1100.0))
    comparison = compare(spec, [trial(spec, 0, 1.0, 900.0, **slow), trial(spec, 1, 2.0, 1100.0, **fast)])
    assert [(row.number, row.rank, row.on_front, row.veto) for row in comparison.rows] == [
        (1, 1, True, None),
        (0, None, None, "tokens_per_s >= 1000: 900"),
    ]
    assert "Vetoed by a limit of objective.constraints, and not ranked: trial 0." in comparison.caveats
    assert violations(spec.objective, trial(spec, 0, 1.0, 900.0, **slow)) == ("tokens_per_s >= 1000: 900",)


@pytest.mark.parametrize(
    ("fields", "pointer", "code"),
    [
        ({"sampler": {"kind": "cmaes"}}, "/sampler/kind", "one_objective_only"),
        ({"further_objectives": [SPEED, SPEED]}, "/further_objectives/1/metric", "repeated"),
        (
            {"further_objectives": [{"metric": "eval/loss", "domain": "lagal", "direction": "minimize"}]},
            "/further_objectives/0/domain",
            "unknown_domain",
        ),
        (
            {
                "further_objectives": [
                    {"metric": "eval/loss", "direction": "minimize", "value": {"kind": "at", "tokens": 99_999}}
                ]
            },
            "/further_objectives/0/value/tokens",
            "out_of_range",
        ),
        (
            {"objective": {"constraints": [CAPABILITY | {"relative_to": "bas"}]}, "baselines": [{"name": "base"}]},
            "/objective/constraints/0/relative_to",
            "unknown_baseline",
        ),
        (
            {"objective": {"constraints": [CAPABILITY | {"domain": "x"}]}},
            "/objective/constraints/0/domain",
            "unknown_domain",
        ),
    ],
)
def test_what_does_not_go_with_several_objectives_is_refused(fields: dict[str, Any], pointer: str, code: str) -> None:
    document = experiment_document(**{"space": SPACE, "further_objectives": [SPEED], **fields})
    with pytest.raises(SpecRejected) as refused:
        admit(document, capacity=None)
    assert [(problem.pointer, problem.code) for problem in refused.value.problems] == [(pointer, code)]


def test_scheduler_judges_by_the_first_objective_and_says_so() -> None:
    document = experiment_document(further_objectives=[SPEED], scheduler={"kind": "asha", "min_tokens": 1024})
    admitted = admit(document, capacity=None)
    assert any("judges by the first objective, eval/bits_per_byte, alone" in warning for warning in admitted.warnings)


@pytest.mark.parametrize("metric", ["tokens_per_s", "active_parameters"])
@pytest.mark.parametrize("given", [{"domain": "legal"}, {"value": {"kind": "best"}}])
def test_figure_of_a_run_has_no_corpus_and_no_reduction(metric: str, given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="eval/ metric only"):
        FurtherObjective.model_validate({"metric": metric, "direction": "maximize", **given})


def test_one_objective_is_told_as_it_was() -> None:
    spec = experiment_spec(space=SPACE, sampler={"kind": "tpe"})
    (told,) = study_of(spec, number=1, history=[trial(spec, 0, 2.0, None)]).trials
    assert (told.values, told.constraints) == ([2.0], {"runs": 0.0})
