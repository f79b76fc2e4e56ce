"""Every balancing method: a scalar per micro-batch, an act per step, no state of its own, nothing on the host."""

import pytest
import torch

from tests.support.component_configs import config_classes, example_config
from tests.support.models import model_config, moe_fields, random_tokens, tiny_model
from trainer.balancing import BALANCERS
from trainer.balancing.base import Balancer
from trainer.balancing.build import build_balancers
from trainer.config.balancing import BalancerConfig
from trainer.model.transformer import Transformer

every_kind = pytest.mark.parametrize("kind", BALANCERS)


def model_and_balancer(kind: str) -> tuple[Transformer, Balancer]:
    balancing = [example_config(BalancerConfig, kind).model_dump()]
    model = tiny_model(model_config(moe=moe_fields(balancing=balancing)))
    (balancer,) = build_balancers(model.config.moe)
    return model, balancer


def test_registry_has_the_kinds_of_the_config() -> None:
    assert set(BALANCERS) == set(config_classes(BalancerConfig))


@every_kind
def test_loss_is_a_float32_scalar_whose_gradient_reaches_every_router_or_none(kind: str) -> None:
    model, balancer = model_and_balancer(kind)
    loss = balancer.loss(model(random_tokens(2, 16)).routings)
    if loss is None:
        return
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    loss.backward()
    for layer in model.moe_layers():
        assert layer.router.weight.grad.abs().sum() > 0


@every_kind
def test_method_acts_through_a_loss_or_after_the_step(kind: str) -> None:
    model, balancer = model_and_balancer(kind)
    routings = model(random_tokens(2, 16)).routings
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    balancer.after_step(model, torch.stack([routing.counts_E for routing in routings]).float())
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed or balancer.loss(routings) is not None
    assert all("selection_bias_E" in name for name in changed)


@every_kind
def test_bias_buffer_exists_iff_the_method_needs_it(kind: str) -> None:
    model, balancer = model_and_balancer(kind)
    for layer in model.moe_layers():
        assert (layer.selection_bias_E is not None) == balancer.needs_selection_bias


@every_kind
def test_two_instances_act_alike_so_there_is_no_hidden_state(kind: str) -> None:
    states = []
    for restarted in (False, True):
        model, balancer = model_and_balancer(kind)
        for step in range(3):
            if restarted:
                (balancer,) = build_balancers(model.config.moe)
            balancer.after_step(model, torch.tensor([[10.0, step, 3.0, 1.0]] * 2))
        states.append(model.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])


@every_kind
def test_loss_of_equal_layers_is_that_of_one(kind: str) -> None:
    model, balancer = model_and_balancer(kind)
    routing = model(random_tokens(2, 16)).routings[0]
    one, three = balancer.loss([routing]), balancer.loss([routing] * 3)
    if one is None or three is None:
        assert one is three
        return
    torch.testing.assert_close(three, one)
