"""The parameters listed without building a model are those of the built one, for every component and option."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.component_configs import attention_examples, config_classes, example_config
from tests.support.models import META, dense_and_moe_configs, model_config, moe_fields
from trainer.config.attention import AttentionConfig
from trainer.config.model import ModelConfig
from trainer.config.parameters import ParameterShape, model_parameters
from trainer.config.routers import RouterConfig
from trainer.model.build import build_model, parameter_roles


def built(config: ModelConfig) -> dict[str, ParameterShape]:
    model = build_model(config, seed=0, device=META)
    roles = parameter_roles(model)
    return {name: ParameterShape(roles[name], tuple(each.shape)) for name, each in model.named_parameters()}


@pytest.mark.parametrize("name", dense_and_moe_configs())
def test_every_layer_stack(name: str) -> None:
    config = dense_and_moe_configs()[name]
    assert model_parameters(config) == built(config)


@pytest.mark.parametrize("name", attention_examples())
def test_every_attention(name: str) -> None:
    config = ModelConfig.model_validate(
        model_config().model_dump() | {"attention": attention_examples()[name].model_dump()}
    )
    assert model_parameters(config) == built(config)


@pytest.mark.parametrize("kind", config_classes(RouterConfig))
def test_every_router(kind: str) -> None:
    router = example_config(RouterConfig, kind).model_dump()
    config = model_config(moe=moe_fields(router=router))
    assert model_parameters(config) == built(config)


def test_every_kind_of_attention_has_an_example() -> None:
    assert {config.kind for config in attention_examples().values()} == set(config_classes(AttentionConfig))


MOE_OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "num_shared_experts": st.sampled_from([1, 2]),
    "num_dense_layers": st.sampled_from([0, 1]),
    "every": st.sampled_from([1, 2]),
    "expert_bias": st.booleans(),
    "shared_gate": st.booleans(),
    "output_scale": st.sampled_from([None, {"init": 2.0, "learned": True}, {"init": 2.0, "learned": False}]),
    "num_null_experts": st.sampled_from([0, 2]),
    "router": st.sampled_from([{"bias": False}, {"bias": True}]),
}


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(options=st.fixed_dictionaries(MOE_OPTIONS), tied=st.booleans())
def test_options_of_a_mixture_in_any_combination(options: dict[str, Any], tied: bool) -> None:
    config = model_config(num_layers=4, tie_embeddings=tied, moe=moe_fields(**options))
    assert model_parameters(config) == built(config)


def test_predictor_of_expert_choice() -> None:
    config = model_config(moe=moe_fields(router={"kind": "expert_choice", "capacity_factor": 2.0, "predictor": True}))
    assert model_parameters(config) == built(config)
