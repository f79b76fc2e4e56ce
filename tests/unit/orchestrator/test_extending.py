"""Extending an experiment: what is wider, what is refused, and that the search goes on with all it has learned."""

from typing import Any

import pytest

from orchestrator.errors import SpecRejected
from orchestrator.extending import covers, extended
from orchestrator.search.past import past_of
from orchestrator.search.propose import propose, study_of
from orchestrator.search.space import DOMAIN
from orchestrator.store.records import TrialRecord
from tests.support.records import trial_record
from tests.support.specs import experiment_document, experiment_spec

LR = {"float": [1e-4, 1e-2], "log": True}
OPTIONS = {"none": [], "loss": [{"kind": "load_balancing_loss", "coefficient": {"float": [0.001, 0.1]}}]}
WIDER = {**OPTIONS, "loss": [{"kind": "load_balancing_loss", "coefficient": {"float": [0.001, 1.0]}}], "bias": []}


@pytest.mark.parametrize(
    ("new", "old", "is_wider"),
    [
        ({"int": [1, 8]}, {"int": [2, 8]}, True),
        ({"int": [1, 8]}, {"int": [1, 9]}, False),
        ({"int": [1, 9], "step": 2}, {"int": [3, 9], "step": 4}, True),
        ({"int": [1, 9], "step": 2}, {"int": [2, 8], "step": 2}, False),
        ({"int": [1, 9], "step": 2}, {"int": [1, 9]}, False),
        ({"int": [1, 8]}, {"int": [1, 8], "log": True}, False),
        ({"float": [0.0, 2.0]}, {"float": [0.5, 1.5], "step": 0.5}, True),
        ({"float": [0.0, 2.0], "step": 0.25}, {"float": [0.5, 1.5], "step": 0.5}, True),
        ({"float": [0.0, 2.0], "step": 0.4}, {"float": [0.0, 2.0], "step": 0.5}, False),
        ({"float": [0.0, 2.0], "step": 0.5}, {"float": [0.5, 1.5]}, False),
        ({"choice": [1, 2, True]}, {"choice": [True]}, True),
        ({"choice": [1, 2]}, {"choice": [True]}, False),
        ({"choice": [1, 2]}, {"int": [1, 2]}, False),
        ({"options": WIDER}, {"options": OPTIONS}, True),
        ({"options": OPTIONS}, {"options": WIDER}, False),
        ({"options": {**OPTIONS, "none": None}}, {"options": OPTIONS}, False),
    ],
)
def test_a_domain_covers_another_if_it_has_all_its_values(
    new: dict[str, Any], old: dict[str, Any], is_wider: bool
) -> None:
    assert covers(DOMAIN.validate_python(new), DOMAIN.validate_python(old)) is is_wider


@pytest.mark.parametrize(
    ("fields", "num_trials", "space", "pointer", "code"),
    [
        ({}, 8, {}, "/num_trials", "out_of_range"),
        ({}, 9, {"optimizer.lr": {"float": [1e-3, 1.0], "log": True}}, "/space/optimizer.lr", "not_wider"),
        ({}, 9, {"optimizer.lr": {"flot": [1e-3, 1.0]}}, "/space/optimizer.lr", "not_a_domain"),
        ({}, 9, {"model.moe.top_k": {"int": [3, 4]}}, "/space/model.moe.top_k", "not_wider"),
        ({}, 9, {"model.moe.balancing": {"options": OPTIONS}}, "/space/model.moe.balancing", "not_wider"),
        ({}, 9, {"model.moe.top_q": {"int": [3, 4]}}, "/space/model.moe.top_q", "not_wider"),
        (
            {"space": {"model.moe.top_k": {"int": [1, 2]}}, "sampler": {"kind": "grid"}, "num_trials": None},
            3,
            {"model.moe.top_k": {"int": [1, 4]}},
            "/space",
            "fixed_grid",
        ),
        ({"synchronous": True, "batch_size": 5}, 10, {}, "/num_trials", "partial_batch"),
        (
            {"scheduler": {"kind": "pbt", "min_tokens": 2048, "interval_tokens": 2048}},
            9,
            {},
            "/num_trials",
            "fixed_population",
        ),
    ],
)
def test_an_extension_that_forgets_trials_is_refused(
    fields: dict[str, Any], num_trials: int, space: dict[str, Any], pointer: str, code: str
) -> None:
    document = experiment_document(**fields)
    with pytest.raises(SpecRejected) as refused:
        extended(experiment_spec(**fields), document=document, num_trials=num_trials, space=space, capacity=None)
    assert [(problem.pointer, problem.code) for problem in refused.value.problems] == [(pointer, code)]


def test_the_search_goes_on_with_everything_in_a_wider_space() -> None:
    spec = experiment_spec(space={"optimizer.lr": LR}, sampler={"kind": "tpe", "num_startup_trials": 4}, num_trials=6)
    history: list[TrialRecord] = []
    for number in range(6):
        proposal = propose(spec, number=number, history=history)
        assert proposal is not None
        rate = float(str(proposal.params["optimizer.lr"]))
        history.append(trial_record(spec, number, proposal.params, objective=abs(rate - 0.03)))
    assert propose(spec, number=6, history=history) is None
    space = {"optimizer.lr": {"float": [1e-4, 1e-1], "log": True}, "model.moe.top_k": {"int": [1, 4]}}
    sent = {"name": "sent", "space": {"optimizer.lr": LR}}
    wider = extended(spec, document=sent, num_trials=30, space=space, capacity=None)
    assert wider.document == {"name": "sent", "num_trials": 30, "space": space}
    # The base has top_k=2, which is what the earlier trials ran with.
    told = study_of(wider.spec, number=6, history=past_of(wider.spec, history)).trials
    assert [set(trial.params) for trial in told] == [set(space)] * 6
    assert {trial.params["model.moe.top_k"] for trial in told} == {2}
    for number in range(6, 30):
        proposal = propose(wider.spec, number=number, history=past_of(wider.spec, history))
        assert proposal is not None
        rate = float(str(proposal.params["optimizer.lr"]))
        history.append(trial_record(wider.spec, number, proposal.params, objective=abs(rate - 0.03)))
    best = min(history, key=lambda trial: trial.objective or 0.0)
    assert 0.01 < float(str(best.params["optimizer.lr"])) < 0.1


def test_more_of_a_grid_that_ran_in_part_leaves_nothing_out() -> None:
    fields = {"space": {"model.moe.top_k": {"int": [1, 4]}}, "sampler": {"kind": "grid"}, "num_trials": 2}
    spec = experiment_spec(**fields)
    wider = extended(spec, document={}, num_trials=4, space={}, capacity=None).spec
    points = [propose(one, number=number, history=[]) for one, number in ((spec, 0), (spec, 1), (wider, 2), (wider, 3))]
    assert [None if point is None else point.params["model.moe.top_k"] for point in points] == [1, 2, 3, 4]
