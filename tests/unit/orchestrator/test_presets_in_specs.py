"""The base of a spec may name a preset; what is admitted is the complete configuration."""

from typing import Any

import pytest

from orchestrator.admission import admit
from orchestrator.errors import SpecProblem, SpecRejected
from orchestrator.spec import ExperimentSpec
from trainer.config import TrainConfig
from trainer.presets import preset_document


def document(**base: Any) -> dict[str, Any]:
    return {"name": "by preset", "base": {"preset": "cpu-tiny"} | base, "num_trials": 1}


def problems(spec: dict[str, Any]) -> list[SpecProblem]:
    with pytest.raises(SpecRejected) as caught:
        admit(spec, capacity=None)
    return caught.value.problems


def test_admitted_spec_has_every_field_and_the_document_stays_as_sent() -> None:
    sent = document(loop={"budget_tokens": 8192}, model={"moe": {"num_experts": 8}})
    admitted = admit(sent, capacity=None)
    expected = preset_document("cpu-tiny")
    expected["loop"]["budget_tokens"] = 8192
    expected["model"]["moe"]["num_experts"] = 8
    assert admitted.spec.base == TrainConfig.model_validate(expected)
    assert "preset" not in admitted.spec.model_dump()["base"]
    assert admitted.document["base"] == sent["base"]


def test_space_and_baselines_see_the_presets_fields() -> None:
    spec = document() | {
        "space": {"model.moe.top_k": {"int": [1, 4]}},
        "baselines": [{"name": "dense", "set": {"model.moe": None}}],
        "num_trials": 2,
    }
    assert admit(spec, capacity=None).spec.space.keys() == {"model.moe.top_k"}


def test_unknown_preset_is_one_problem_with_the_names() -> None:
    (problem,) = problems(document(preset="cpu-tinny"))
    assert (problem.pointer, problem.code, problem.given) == ("/base/preset", "unknown_preset", "cpu-tinny")
    assert "did you mean cpu-tiny?" in problem.message
    assert problem.allowed is not None
    assert "olmoe-1b-7b" in problem.allowed


@pytest.mark.parametrize("name", [None, 3, ["cpu-tiny"], {"preset": "cpu-tiny"}])
def test_preset_that_is_no_name_is_refused(name: Any) -> None:
    (problem,) = problems(document(preset=name))
    assert problem.pointer == "/base/preset"


def test_wrong_field_beside_a_preset_is_pointed_at() -> None:
    (problem,) = problems(document(model={"moe": {"top_k": 99}}))
    assert problem.pointer == "/base/model/moe/top_k"
    assert "top_k=99 exceeds num_experts=16" in problem.message
    (problem,) = problems(document(modle={}))
    assert (problem.pointer, problem.code) == ("/base/modle", "unknown_field")


def test_schema_offers_the_names() -> None:
    complete, by_name = ExperimentSpec.model_json_schema()["properties"]["base"]["anyOf"]
    assert complete == {"$ref": "#/$defs/TrainConfig"}
    assert "olmoe-1b-7b" in by_name["properties"]["preset"]["enum"]
    stored = ExperimentSpec.model_json_schema(mode="serialization")["properties"]["base"]
    assert stored["$ref"] == "#/$defs/TrainConfig"
