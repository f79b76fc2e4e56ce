"""Laws of every sampler, over the kinds that a spec can name."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.samplers import SamplerConfig
from orchestrator.search.propose import propose
from orchestrator.search.space import active, parameters, resolve
from orchestrator.spec import ChoiceDomain, ExperimentSpec, FloatDomain, IntDomain, OptionsDomain, Scalar
from orchestrator.store.records import TrialRecord
from tests.support.records import trial_record
from tests.support.specs import experiment_spec

KINDS = [member.model_fields["kind"].default for member in get_args(get_args(SamplerConfig)[0])]

whole = st.tuples(st.integers(1, 50), st.integers(0, 50)).map(lambda pair: [pair[0], pair[0] + pair[1]])
real = st.tuples(st.floats(1e-5, 1.0), st.floats(0.0, 9.0)).map(lambda pair: [pair[0], pair[0] + pair[1]])
plain_domains = st.one_of(
    st.builds(lambda bounds, step: {"int": bounds, "step": step}, whole, st.integers(1, 7)),
    st.builds(lambda bounds: {"int": bounds, "log": True}, whole),
    st.builds(
        lambda bounds, parts: {"float": bounds, "step": max(0.01, (bounds[1] - bounds[0]) / parts)},
        real,
        st.integers(1, 9),
    ),
    st.builds(lambda values: {"choice": values}, st.lists(st.sampled_from([1, 2.5, True, None, "x"]), min_size=1)),
)
domains = plain_domains | st.builds(
    lambda options: {"options": options},
    st.dictionaries(st.sampled_from("abc"), st.just([]) | plain_domains, min_size=1),
)
# Any domain at any path: drawing from it is one thing, whether the point is a valid configuration another.
spaces = st.dictionaries(st.sampled_from(["optimizer.lr", "seed", "model.moe.top_k"]), domains, min_size=1)


def spec_of(kind: str, space: dict[str, Any], **fields: Any) -> ExperimentSpec:
    return experiment_spec(sampler={"kind": kind}, space=space, num_trials=None if kind == "grid" else 20, **fields)


def contains(domain: IntDomain | FloatDomain | ChoiceDomain | OptionsDomain, value: Scalar) -> bool:
    if isinstance(domain, IntDomain):
        low, high = domain.int
        return type(value) is int and low <= value <= high and (value - low) % domain.step == 0
    if isinstance(domain, FloatDomain):
        low, high = domain.float
        if not isinstance(value, float | int) or not low <= value <= high:
            return False
        steps = 0 if domain.step is None else (value - low) / domain.step
        return abs(steps - round(steps)) < 1e-6
    if isinstance(domain, ChoiceDomain):
        return any(choice == value and type(choice) is type(value) for choice in domain.choice)
    return value in domain.options


@pytest.mark.parametrize("kind", KINDS)
@given(space=spaces, number=st.integers(0, 5), seed=st.integers(0, 3))
@settings(max_examples=40)
def test_proposal_names_exactly_the_parameters_there_are_with_values_of_their_domains(
    kind: str, space: dict[str, Any], number: int, seed: int
) -> None:
    spec = spec_of(kind, space, seed=seed)
    proposal = propose(spec, number=number, history=[])
    if proposal is None:
        return
    there = {parameter.name: parameter.domain for parameter in parameters(spec) if active(parameter, proposal.params)}
    assert set(proposal.params) == set(there)
    for name, value in proposal.params.items():
        assert contains(there[name], value), (name, value)


@pytest.mark.parametrize("kind", KINDS)
def test_proposal_is_the_same_again_and_from_rows_that_went_through_json(kind: str) -> None:
    space = {
        "optimizer.lr": {"float": [0.001, 0.009], "step": 0.001},
        "model.moe.top_k": {"int": [1, 4]},
        "model.moe.router.normalize": {"choice": [True, False]},
    }
    spec = spec_of(kind, space)
    reread = ExperimentSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json"), sort_keys=True)))
    history: list[TrialRecord] = []
    for number in range(14):
        proposal = propose(spec, number=number, history=history)
        assert proposal is not None
        assert proposal == propose(reread, number=number, history=history)
        assert proposal.config == resolve(spec, proposal.params)
        params = json.loads(json.dumps(proposal.params))
        history.append(trial_record(spec, number, params, objective=2.0 + number % 3))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("grid", "brute_force")])
def test_another_seed_gives_other_points(kind: str) -> None:
    space = {"optimizer.lr": {"float": [1e-4, 1e-2], "log": True}}
    points = {
        str(proposal.params)
        for seed in range(5)
        if (proposal := propose(spec_of(kind, space, seed=seed), number=0, history=[])) is not None
    }
    assert len(points) == 5
