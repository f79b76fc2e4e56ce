"""The five parts of a model that can be trained alone."""

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from tests.support.component_configs import example_config
from tests.support.models import CPU, model_config, moe_fields, random_tokens
from tests.support.training import train_config
from trainer.config.optimizers import OptimizerConfig
from trainer.config.trained import TrainedPart
from trainer.model.build import build_model
from trainer.model.optimizer_size import optimizer_values
from trainer.model.size import memory_estimate
from trainer.model.transformer import Transformer
from trainer.optimizers import OPTIMIZERS
from trainer.optimizers.build import build_optimizer
from trainer.start.freezing import freeze


def model_with_every_part() -> Transformer:
    """Returns a dense layer and two mixtures of experts, with every parameter that these can have."""
    moe = moe_fields(
        num_dense_layers=1,
        num_shared_experts=1,
        shared_gate=True,
        expert_bias=True,
        output_scale={"init": 1.0},
        router={"bias": True},
    )
    return build_model(
        model_config(num_layers=3, attention={"qk_norm": True}, tie_embeddings=False, moe=moe), seed=0, device=CPU
    )


def trained_names(part: TrainedPart) -> set[str]:
    model = model_with_every_part()
    freeze(model, part)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_all_is_everything_and_the_default() -> None:
    assert trained_names("all") == {name for name, _ in model_with_every_part().named_parameters()}
    assert train_config().trained == "all"


def test_moe_and_non_moe_are_complementary() -> None:
    moe, rest = trained_names("moe"), trained_names("non_moe")
    assert not moe & rest
    assert moe | rest == trained_names("all")
    assert {name.split(".")[1] for name in moe} == {"1", "2"}
    assert {name.split(".")[3] for name in moe} == {"router", "experts", "shared", "shared_gate", "output_scale"}


def test_attention_is_the_attention_modules() -> None:
    names = trained_names("attention")
    assert {name.split(".")[2] for name in names} == {"attention"}
    assert {name.split(".", 3)[3] for name in names} == {
        "query.weight",
        "key.weight",
        "value.weight",
        "out.weight",
        "query_norm.gain",
        "key_norm.gain",
    }
    assert len(names) == 3 * 6


def test_ffn_is_the_mlps_of_dense_layers() -> None:
    assert trained_names("ffn") == {f"blocks.0.feed_forward.{name}.weight" for name in ("gate", "up", "down")}


@pytest.mark.parametrize("part", get_args(TrainedPart))
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizer_and_its_size_are_of_the_trained_parameters_alone(kind: str, part: TrainedPart) -> None:
    model = model_with_every_part()
    freeze(model, part)
    config = example_config(OptimizerConfig, kind)
    optimizer = build_optimizer(config, model)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in held}
    assert names == trained_names(part)
    model(random_tokens(2, 8), random_tokens(2, 8, seed=1)).loss.backward()
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values()]
    assert sum(value.numel() for value in kept if value.dim()) == optimizer_values(config, model.config, part)


@pytest.mark.parametrize("part", get_args(TrainedPart))
def test_gradients_are_sized_for_the_trained_parameters(part: TrainedPart) -> None:
    model = model_with_every_part()
    freeze(model, part)
    config = train_config(model=model.config.model_dump() | {"vocab_size": 1024}, trained=part)
    expected = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if part in ("all", "non_moe"):
        expected += 2 * (1024 - 64) * model.config.dim  # the embeddings of a vocabulary that the data can have
    assert round(memory_estimate(config).gradients_gib * 2**30) == 4 * expected


@pytest.mark.parametrize(
    ("trained", "moe", "reason"),
    [
        ("moe", None, r"trained=moe leaves nothing to train: model\.moe is null"),
        ("ffn", moe_fields(), "trained=ffn leaves nothing to train: every layer is a mixture of experts"),
    ],
)
def test_part_that_the_model_does_not_have_is_refused(trained: str, moe: dict[str, Any] | None, reason: str) -> None:
    model = model_config(vocab_size=1024, moe=moe).model_dump()
    with pytest.raises(ValidationError, match=reason):
        train_config(model=model, trained=trained)


@pytest.mark.parametrize(("trained", "moe"), [("ffn", moe_fields(every=2)), ("ffn", None), ("non_moe", moe_fields())])
def test_part_that_the_model_has_is_taken(trained: str, moe: dict[str, Any] | None) -> None:
    assert train_config(model=model_config(vocab_size=1024, moe=moe).model_dump(), trained=trained).trained == trained
