"""The memory estimate against the bytes autograd really keeps."""

from typing import Any

import pytest
import torch

from tests.support.models import CPU, META, random_tokens
from tests.support.training_memory import bytes_kept, train_config
from trainer.config.train import TrainConfig
from trainer.model.build import build_model
from trainer.model.size import memory_estimate, model_size
from trainer.optimizers.build import build_optimizer

GIB = 2**30


MOE = {"num_experts": 8, "top_k": 2, "hidden_dim": 48}


@pytest.mark.parametrize(
    "moe",
    [
        None,
        MOE,
        MOE | {"num_shared_experts": 2, "num_dense_layers": 1},
        MOE
        | {
            "every": 3,
            "num_shared_experts": 1,
            "shared_gate": True,
            "activation": "clamped_swiglu",
            "expert_bias": True,
            "output_scale": {"init": 2.0},
            "router": {"bias": True},
        },
        MOE | {"router": {"kind": "expert_choice", "capacity_factor": 1.5}},
        MOE | {"num_experts": 32, "router": {"kind": "expert_choice", "predictor": True}},
        MOE | {"capacity": {"factor": 1.0}},
        MOE | {"num_null_experts": 8, "null_expert": "identity"},
    ],
    ids=[
        "dense",
        "moe",
        "moe_shared_dense_first",
        "moe_structure",
        "expert_choice",
        "expert_choice_predictor",
        "capacity",
        "null_experts",
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
def test_activations_are_what_autograd_keeps(precision: str, moe: dict[str, Any] | None) -> None:
    config = train_config(precision=precision, moe=moe)
    estimate = memory_estimate(config)
    head_gradient = 4 * config.model.vocab_size * config.model.dim  # kept too, counted as logits
    casts = 2 * model_size(config.model).non_embedding_total if precision == "bf16_autocast" else 0
    measured = bytes_kept(config) - head_gradient
    # Above by the gradients of the last norm, which exist in the backward pass only; that is the last 16*D a token.
    assert estimate.activations_gib * GIB + casts == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize("rest", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize("kind", ["fp8", "mxfp8", "nvfp4"])
def test_precisions_of_experts_keep_what_the_rest_keeps_and_no_copies(kind: str, rest: str) -> None:
    moe = MOE | {"hidden_dim": 64, "num_shared_experts": 1}
    config = train_config(precision=rest, moe=moe)
    document = config.model_dump() | {"precision": {"kind": kind, "rest": rest}}
    quantized = TrainConfig.model_validate(document)
    estimate = memory_estimate(quantized)
    num_expert_weights = sum(
        parameter.numel()
        for name, parameter in build_model(config.model, seed=0, device=META).named_parameters()
        if ".experts." in name
    )
    saved = 0 if rest == "fp32" else 2 * num_expert_weights
    assert memory_estimate(config).weights_gib * GIB - saved == estimate.weights_gib * GIB
    head_gradient = 4 * config.model.vocab_size * config.model.dim
    casts = (estimate.weights_gib - estimate.gradients_gib) * GIB
    measured = bytes_kept(quantized) - head_gradient
    assert estimate.activations_gib * GIB + casts == pytest.approx(measured, rel=0.06)


def test_activations_grow_with_the_micro_batch_and_nothing_else_does() -> None:
    small = memory_estimate(train_config(moe=MOE, global_batch_size=16, micro_batch_size=4))
    large = memory_estimate(train_config(moe=MOE, global_batch_size=16, micro_batch_size=16))
    assert large.activations_gib == 4 * small.activations_gib
    assert (large.weights_gib, large.gradients_gib, large.optimizer_gib) == (
        small.weights_gib,
        small.gradients_gib,
        small.optimizer_gib,
    )
    assert memory_estimate(train_config(moe=MOE, global_batch_size=64, micro_batch_size=4)) == small


def test_weights_gradients_and_optimizer_are_the_bytes_of_the_built_ones() -> None:
    config = train_config(moe=MOE)
    estimate = memory_estimate(config)
    model = build_model(config.model, seed=0, device=CPU)
    optimizer = build_optimizer(config.optimizer, model)
    model(random_tokens(1, 8), random_tokens(1, 8, seed=1)).loss.backward()
    optimizer.step()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    moments = sum(
        value.nbytes for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    )
    assert estimate.weights_gib * GIB == weights
    assert estimate.gradients_gib * GIB == sum(parameter.grad.nbytes for parameter in model.parameters())
    # AdamW keeps a step counter of 4 bytes per parameter tensor besides its moments.
    assert estimate.optimizer_gib * GIB == moments - 4 * len(list(model.parameters()))


def test_total_is_the_sum_of_the_parts() -> None:
    estimate = memory_estimate(train_config())
    parts = (
        estimate.weights_gib,
        estimate.gradients_gib,
        estimate.optimizer_gib,
        estimate.activations_gib,
        estimate.logits_gib,
    )
    assert estimate.total_gib == pytest.approx(sum(parts))
    assert min(parts) > 0


def test_a_model_of_sixteen_billion_parameters_is_sized_without_building_it() -> None:
    document = train_config().model_dump()
    document["model"] |= {"dim": 2048, "num_layers": 28, "vocab_size": 102_400, "hidden_dim": 10944}
    document["model"]["moe"] = {"num_experts": 64, "top_k": 6, "hidden_dim": 1408, "num_shared_experts": 2}
    config = TrainConfig.model_validate(document)
    # 16 bytes per parameter, of which there are as many as in the model's shapes.
    num_parameters = sum(parameter.numel() for parameter in build_model(config.model, seed=0, device=META).parameters())
    estimate = memory_estimate(config)
    states = estimate.weights_gib + estimate.gradients_gib + estimate.optimizer_gib
    assert states == pytest.approx(16 * num_parameters / GIB)
