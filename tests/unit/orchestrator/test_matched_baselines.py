"""Baselines by what they have as much of as the base."""

from typing import Any

import pytest

from api.validation import validation
from orchestrator.admission import admit
from orchestrator.errors import SpecProblem, SpecRejected
from orchestrator.search.matches import baseline_matches
from orchestrator.search.rank import compare
from orchestrator.search.space import baseline_configs
from orchestrator.spec import ExperimentSpec
from tests.support.records import trial_record
from tests.support.specs import experiment_document, train_document
from trainer.model.size import flops_per_token, model_size


def document(*baselines: dict[str, Any], **fields: Any) -> dict[str, Any]:
    named = [{"name": f"twin {number}"} | fields for number, fields in enumerate(baselines)]
    return experiment_document(baselines=named, **fields)


def admitted(*baselines: dict[str, Any]) -> ExperimentSpec:
    return admit(document(*baselines), capacity=None).spec


def problem(*baselines: dict[str, Any], **fields: Any) -> SpecProblem:
    with pytest.raises(SpecRejected) as caught:
        admit(document(*baselines, **fields), capacity=None)
    (found,) = caught.value.problems
    return found


def test_dense_twin_has_as_many_active_parameters() -> None:
    spec = admitted({"match": "active_params"})
    ((_, config),) = baseline_configs(spec)
    assert config.model.moe is None
    # Two experts of 32 and, nearly, the router's 4 x 32 weights over 3 x 32 a column.
    assert config.model.hidden_dim == 64
    ((name, twin),) = baseline_matches(spec)
    assert name == "twin 0"
    assert (twin.value, twin.target) == (model_size(config.model).active, model_size(spec.base.model).active)


def test_all_else_is_the_bases() -> None:
    spec = admitted({"match": "total_params"})
    ((_, config),) = baseline_configs(spec)
    different = {"moe", "hidden_dim"}
    assert config.model.model_dump(exclude=different) == spec.base.model.model_dump(exclude=different)
    assert config.model_dump(exclude={"model"}) == spec.base.model_dump(exclude={"model"})


def test_dense_twin_of_quantised_experts_trains_as_the_rest_of_the_base() -> None:
    base = train_document()
    base["precision"] = {"kind": "nvfp4", "rest": "bf16_autocast"}
    ((_, dense), (_, finer)) = baseline_configs(
        admit(
            document({"match": "active_params"}, {"match": "total_params", "num_experts": 4}, base=base), capacity=None
        ).spec
    )
    assert dense.precision.kind == "bf16_autocast"
    assert finer.precision.kind == "nvfp4"


def test_set_is_counted_before_the_width_is_derived() -> None:
    plain, narrow = (
        baseline_configs(admitted({"match": "flops", "set": values}))[0][1]
        for values in ({}, {"model.attention.num_heads": 1, "optimizer.lr": 0.001})
    )
    assert narrow.optimizer.lr == 0.001
    assert narrow.model.attention.kind == "gqa"
    assert narrow.model.hidden_dim > plain.model.hidden_dim
    flops = [flops_per_token(config.model, seq_len=64) for config in (plain, narrow)]
    assert flops[0] == pytest.approx(flops[1], rel=0.05)


def test_finer_experts() -> None:
    spec = admitted({"match": "total_params", "granularity": 2}, {"match": "total_params", "num_experts": 8})
    finer, more = (config.model.moe for _, config in baseline_configs(spec))
    assert finer is not None
    assert more is not None
    assert (finer.num_experts, finer.top_k, finer.hidden_dim) == (8, 4, 16)
    assert (more.num_experts, more.top_k, more.hidden_dim) == (8, 2, 16)


def test_dry_run_says_how_well_each_matches() -> None:
    found = admit(document({"match": "active_params"}, {"set": {"optimizer.lr": 0.1}}), capacity=None)
    (match,) = validation(found, None, ()).baseline_matches
    assert (match.baseline, match.match, match.hidden_dim) == ("twin 0", "active_params", 64)
    assert match.residual == pytest.approx(match.value / match.base_value - 1)
    assert 0 < abs(match.residual) < 0.01
    assert found.warnings == []


def test_comparison_says_how_well_a_baseline_that_ran_matches() -> None:
    spec = admitted({"match": "active_params"})
    search = trial_record(spec, 1, {"optimizer.lr": 0.001}, objective=1.0)
    ((_, twin),) = baseline_matches(spec)
    sentence = (
        f"Baseline 'twin 0', matched at hidden_dim=64, has {-100 * twin.residual:.2f} % fewer active parameters than "
        f"the base ({twin.value:,.0f} and {twin.target:,.0f})."
    )
    ((label, config),) = baseline_configs(spec)
    baseline = trial_record(spec, 0, None, objective=2.0, label=label, config=config.model_dump(mode="json"))
    assert sentence in compare(spec, [baseline, search]).caveats
    assert sentence not in compare(spec, [search]).caveats


def test_poor_match_is_a_warning() -> None:
    base = train_document()
    base["model"] |= {"num_layers": 8, "vocab_size": 1024}
    base["model"]["moe"] |= {"hidden_dim": 8, "num_experts": 16, "balancing": []}
    spec = document({"match": "total_params", "num_experts": 24}, base=base)
    (warning,) = admit(spec, capacity=None).warnings
    assert warning.startswith("Baseline 'twin 0', matched at hidden_dim=8, has ")
    assert "% more parameters than the base (" in warning


@pytest.mark.parametrize(
    ("baseline", "place", "message"),
    [
        ({"granularity": 2}, "/baselines/0/granularity", "there is no match"),
        ({"num_experts": 8}, "/baselines/0/num_experts", "there is no match"),
        ({"match": "flops", "granularity": 2, "num_experts": 8}, "/baselines/0/granularity", "are both given"),
        ({"match": "flops", "granularity": 0.3}, "/baselines/0/match", "granularity=0.3 makes num_experts=4 into 1.2"),
        ({"match": "params"}, "/baselines/0/match", "'params' is not allowed"),
        ({"match": "flops", "num_experts": 1}, "/baselines/0/num_experts", "at least 2"),
    ],
)
def test_what_cannot_be_derived_is_refused(baseline: dict[str, Any], place: str, message: str) -> None:
    found = problem(baseline)
    assert found.pointer == place
    assert message in found.message


def test_twin_that_is_no_valid_model_is_refused() -> None:
    found = problem({"match": "total_params", "num_experts": 2, "set": {"model.moe.top_k": 3}})
    assert found.pointer == "/baselines/0/match"
    assert "top_k=3 exceeds num_experts=2" in found.message


def test_dense_base_has_nothing_to_match() -> None:
    base = train_document()
    base["model"]["moe"] = None
    found = problem({"match": "flops"}, base=base)
    assert found.pointer == "/baselines/0/match"
    assert "model.moe is null" in found.message
