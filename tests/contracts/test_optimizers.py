"""Every optimizer: one group per parameter, groups by role, exact after a round trip of its state."""

from copy import deepcopy
from typing import Any

import pytest
import torch

from tests.support.component_configs import config_classes, example_config
from tests.support.models import dense_and_moe_configs, random_tokens, tiny_model
from trainer.config.optimizers import OptimizerConfig
from trainer.model.build import parameter_roles
from trainer.model.transformer import Transformer
from trainer.optimizers import OPTIMIZERS
from trainer.optimizers.build import build_optimizer, set_learning_rate
from trainer.skipping import step_unless, step_where_not

every_kind = pytest.mark.parametrize("kind", OPTIMIZERS)
CONFIG = dense_and_moe_configs()["moe_everything"]
LEARNING_RATES = {"adafactor": 0.1}  # relative to the size of the weights; of the others 3e-3, which is not


def train(model: Transformer, optimizer: torch.optim.Optimizer, *, seed: int) -> float:
    loss = model(random_tokens(2, 8, seed=seed), random_tokens(2, 8, seed=seed + 1)).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def with_router(kind: str, router: dict[str, Any], **fields: Any) -> Any:
    """Returns a config of this kind whose routers are updated with these settings."""
    if kind == "by_pattern":
        return example_config(
            OptimizerConfig, kind, groups=[{"pattern": "*.router.*", "rule": {"kind": "adamw"} | router}], **fields
        )
    return example_config(OptimizerConfig, kind, router=router, **fields)


def test_registry_has_the_kinds_of_the_config() -> None:
    assert set(OPTIMIZERS) == set(config_classes(OptimizerConfig))


@every_kind
def test_every_parameter_is_in_one_group_of_its_role(kind: str) -> None:
    model = tiny_model(CONFIG)
    optimizer = build_optimizer(example_config(OptimizerConfig, kind), model)
    roles = parameter_roles(model)
    expected = sorted((id(parameter), roles[name]) for name, parameter in model.named_parameters())
    grouped = sorted(
        (id(parameter), group["role"]) for group in optimizer.param_groups for parameter in group["params"]
    )
    assert grouped == expected


@every_kind
def test_learning_rate_reaches_every_group_with_its_scale(kind: str) -> None:
    config = with_router(kind, {"lr_scale": 0.1, "weight_decay": 0.0}, lr=0.5)
    optimizer = build_optimizer(config, tiny_model(CONFIG))
    assert all(group["lr"] == 0.5 * group["lr_scale"] for group in optimizer.param_groups)
    set_learning_rate(optimizer, 0.02)
    assert {group["lr"] for group in optimizer.param_groups if group["role"] == "router"} == {0.02 * 0.1}
    assert {group["lr"] for group in optimizer.param_groups if group["role"] != "router"} == {0.02}


@every_kind
def test_router_is_decayed_only_where_asked_for_and_vectors_never(kind: str) -> None:
    for router, expected in (({}, {0.0}), ({"weight_decay": 0.3}, {0.3})):
        config = with_router(kind, router, weight_decay=0.1)
        optimizer = build_optimizer(config, tiny_model(CONFIG))
        assert {group["weight_decay"] for group in optimizer.param_groups if group["role"] == "router"} == expected
        for group in optimizer.param_groups:
            if all(parameter.dim() < 2 for parameter in group["params"]):
                assert group["weight_decay"] == 0.0


@every_kind
def test_parameter_without_a_gradient_is_left_alone(kind: str) -> None:
    model = tiny_model(CONFIG)
    optimizer = build_optimizer(example_config(OptimizerConfig, kind, weight_decay=0.5), model)
    model(random_tokens(2, 8), random_tokens(2, 8, seed=1)).loss.backward()
    model.embedding.weight.grad = None
    before = model.embedding.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.embedding.weight, before)


@every_kind
def test_weights_shrink_by_rate_times_decay_where_the_gradient_is_zero(kind: str) -> None:
    model = tiny_model(CONFIG)
    optimizer = build_optimizer(example_config(OptimizerConfig, kind, lr=0.1, weight_decay=0.5), model)
    name = "blocks.1.feed_forward.experts.gate_up_weight_E2FD"
    before = model.get_parameter(name).detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.get_parameter(name).detach(), before * (1 - 0.1 * 0.5), rtol=1e-6, atol=0)


@every_kind
def test_loss_falls(kind: str) -> None:
    model = tiny_model(CONFIG, spread=2.0)
    optimizer = build_optimizer(example_config(OptimizerConfig, kind, lr=LEARNING_RATES.get(kind, 3e-3)), model)
    losses = [train(model, optimizer, seed=0) for _ in range(12)]
    assert losses[-1] < losses[0] - 0.3


@every_kind
def test_next_step_after_a_round_trip_of_the_state_is_bit_equal(kind: str) -> None:
    config = example_config(OptimizerConfig, kind, lr=1e-2)
    model, copy = tiny_model(CONFIG), tiny_model(CONFIG, seed=5)
    optimizer, copied_optimizer = build_optimizer(config, model), build_optimizer(config, copy)
    for seed in range(3):
        train(model, optimizer, seed=seed)
    copy.load_state_dict(model.state_dict())
    copied_optimizer.load_state_dict(deepcopy(optimizer.state_dict()))  # else they would share their moments
    assert train(model, optimizer, seed=9) == train(copy, copied_optimizer, seed=9)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, copy.get_parameter(name)), name


@every_kind
def test_state_holds_tensors_and_groups_hold_plain_values(kind: str) -> None:
    # What a checkpoint writes without pickle.
    model = tiny_model(CONFIG)
    optimizer = build_optimizer(example_config(OptimizerConfig, kind), model)
    train(model, optimizer, seed=0)
    state = optimizer.state_dict()
    assert all(torch.is_tensor(value) for values in state["state"].values() for value in values.values())
    plain = (bool, int, float, str, type(None), tuple, list)
    assert all(isinstance(value, plain) for group in state["param_groups"] for value in group.values())


def bits(model: Transformer, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Returns a copy of every weight and every tensor of the optimizer's state."""
    states = [value for parameter in model.parameters() for value in optimizer.state[parameter].values()]
    return [tensor.detach().clone() for tensor in (*model.parameters(), *states)]


@every_kind
@pytest.mark.parametrize("step", [step_unless, step_where_not], ids=["on_the_host", "on_the_device"])
def test_skipped_step_changes_no_bit_and_any_other_is_a_step(kind: str, step: Any) -> None:
    # The form for CUDA runs on the CPU too.
    config = example_config(OptimizerConfig, kind, lr=1e-2, weight_decay=0.1)
    model, other = tiny_model(CONFIG), tiny_model(CONFIG)
    optimizer, others = build_optimizer(config, model), build_optimizer(config, other)
    for seed in range(3):
        train(model, optimizer, seed=seed)
        train(other, others, seed=seed)
    before = bits(model, optimizer)
    model(random_tokens(2, 8, seed=50), random_tokens(2, 8, seed=51)).loss.backward()
    step(torch.tensor(True), optimizer)
    assert all(map(torch.equal, bits(model, optimizer), before))

    optimizer.zero_grad()
    others.zero_grad()
    for one in (model, other):
        one(random_tokens(2, 8, seed=60), random_tokens(2, 8, seed=61)).loss.backward()
    step(torch.tensor(False), optimizer)
    others.step()
    assert all(map(torch.equal, bits(model, optimizer), bits(other, others)))
