"""AdamW's parameter groups."""

from copy import deepcopy
from typing import Any

import pytest
import torch

from tests.support.models import CPU, META, dense_and_moe_configs, random_tokens, tiny_model
from trainer.config.optimizers import AdamWConfig
from trainer.model.build import build_model, parameter_roles
from trainer.model.transformer import Transformer
from trainer.optimizers.build import build_optimizer, set_learning_rate

CONFIG = dense_and_moe_configs()["moe_everything"]


def adamw(model: torch.nn.Module, **fields: Any) -> torch.optim.Optimizer:
    return build_optimizer(AdamWConfig.model_validate({"lr": 1e-2} | fields), model)


def group_of(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> dict[str, Any]:
    (group,) = [group for group in optimizer.param_groups if any(parameter is member for member in group["params"])]
    return group


def backward(model: Transformer, *, seed: int = 0) -> None:
    model.zero_grad()
    model(random_tokens(2, 8, seed=seed), random_tokens(2, 8, seed=seed + 100)).loss.backward()


@pytest.mark.parametrize("name", dense_and_moe_configs())
def test_every_parameter_is_in_one_group_of_its_role(name: str) -> None:
    model = build_model(dense_and_moe_configs()[name], seed=0, device=META)
    optimizer = adamw(model)
    roles = parameter_roles(model)
    for parameter_name, parameter in model.named_parameters():
        assert group_of(optimizer, parameter)["role"] == roles[parameter_name]


def test_groups_take_the_overrides_of_their_role_and_else_the_config() -> None:
    model = build_model(CONFIG, seed=0, device=META)
    optimizer = adamw(
        model,
        beta1=0.8,
        beta2=0.9,
        weight_decay=0.3,
        router={"lr_scale": 0.5, "beta2": 0.99},
        expert={"lr_scale": 4.0, "weight_decay": 0.05, "beta1": 0.0},
    )
    seen = {
        (group["role"], group["weight_decay"]): (group["lr"], group["lr_scale"], group["betas"])
        for group in optimizer.param_groups
    }
    assert seen == {
        ("dense", 0.3): (1e-2, 1.0, (0.8, 0.9)),
        ("dense", 0.0): (1e-2, 1.0, (0.8, 0.9)),
        # A router stays undecayed when something else of it is overridden.
        ("router", 0.0): (5e-3, 0.5, (0.8, 0.99)),
        ("expert", 0.05): (4e-2, 4.0, (0.0, 0.9)),
        ("embedding", 0.3): (1e-2, 1.0, (0.8, 0.9)),
    }


def test_router_is_not_decayed_by_default() -> None:
    optimizer = adamw(build_model(CONFIG, seed=0, device=META))
    assert {group["weight_decay"] for group in optimizer.param_groups if group["role"] == "router"} == {0.0}


def test_without_gradient_matrices_shrink_by_the_decay_and_gains_do_not() -> None:
    model = tiny_model(CONFIG)
    optimizer = adamw(model, weight_decay=0.5, router={"weight_decay": 0.0}, expert={"lr_scale": 2.0})
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    shrunk = {"dense": 1 - 1e-2 * 0.5, "embedding": 1 - 1e-2 * 0.5, "expert": 1 - 2e-2 * 0.5, "router": 1.0}
    roles = parameter_roles(model)
    for name, parameter in model.named_parameters():
        factor = shrunk[roles[name]] if parameter.dim() >= 2 else 1.0
        torch.testing.assert_close(parameter, before[name] * factor, rtol=1e-6, atol=0, msg=name)


def test_first_step_moves_each_role_by_its_learning_rate() -> None:
    # AdamW's first update is lr * sign(gradient), up to eps.
    model = tiny_model(CONFIG)
    optimizer = adamw(
        model,
        weight_decay=0.0,
        eps=1e-12,
        router={"lr_scale": 0.25, "weight_decay": 0.0},
        expert={"lr_scale": 3.0},
        embedding={"lr_scale": 0.5},
    )
    set_learning_rate(optimizer, 2e-3)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    backward(model)
    optimizer.step()
    lr = {"dense": 2e-3, "router": 5e-4, "expert": 6e-3, "embedding": 1e-3}
    for name, role in parameter_roles(model).items():
        moved = (model.get_parameter(name).detach() - before[name]).abs().max().item()
        assert moved == pytest.approx(lr[role], rel=1e-3), name


def test_step_is_the_published_algorithm() -> None:
    model = tiny_model(CONFIG)
    optimizer = adamw(model, lr=3e-3, beta1=0.7, beta2=0.8, eps=1e-3, weight_decay=0.2)
    name = "blocks.1.feed_forward.experts.gate_up_weight_E2FD"
    parameter = model.get_parameter(name)
    expected = parameter.detach().double()
    first = second = torch.zeros_like(expected)
    for step in (1, 2, 3):
        backward(model, seed=step)
        gradient = parameter.grad.double()
        first = 0.7 * first + 0.3 * gradient
        second = 0.8 * second + 0.2 * gradient**2
        update = (first / (1 - 0.7**step)) / ((second / (1 - 0.8**step)).sqrt() + 1e-3)
        expected = expected - 3e-3 * 0.2 * expected - 3e-3 * update
        optimizer.step()
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-7)


def test_next_step_after_a_round_trip_of_the_state_is_bit_equal() -> None:
    model = tiny_model(CONFIG)
    optimizer = adamw(model)
    for seed in range(3):
        backward(model, seed=seed)
        optimizer.step()
    copy = build_model(CONFIG, seed=9, device=CPU)
    copy.load_state_dict(model.state_dict())
    copied_optimizer = adamw(copy)
    copied_optimizer.load_state_dict(deepcopy(optimizer.state_dict()))  # else they would share their moments
    for one, its_optimizer in ((model, optimizer), (copy, copied_optimizer)):
        backward(one, seed=7)
        its_optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, copy.get_parameter(name)), name


def test_frozen_parameters_are_in_no_group() -> None:
    model = build_model(CONFIG, seed=0, device=META)
    model.embedding.weight.requires_grad_(False)
    optimizer = adamw(model)
    members = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert not any(parameter is model.embedding.weight for parameter in members)
    assert len(members) == len(list(model.parameters())) - 1
