"""Every balancing method: a scalar per micro-batch, an act per step, no state of its own, nothing on the host.

Every loss of the load, whatever its kind and options: 1 at balance, experts over choices at collapse, no way around it,
and a descent that takes load off a hot expert. What is of the whole step does not depend on how the step is split.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import route
from tests.support.balancing import balance, gradients_of_step, model_with_hot_expert, share_of
from tests.support.component_configs import config_classes, example_config
from tests.support.models import model_config, moe_fields, random_tokens, tiny_model
from trainer.balancing import BALANCERS
from trainer.balancing.base import Balancer, demand
from trainer.balancing.build import build_balancers
from trainer.config.balancing import BalancerConfig
from trainer.model.routing import LayerRouting
from trainer.model.transformer import Transformer

every_kind = pytest.mark.parametrize("kind", BALANCERS)

NUM_EXPERTS, TOP_K, NUM_GROUPS = 8, 2, 2
NOT_OF_THE_LOAD = {"router_z_loss"}
"""Losses that keep something else than the load in order."""
VARIANTS: dict[str, dict[str, Any]] = {
    "load_balancing_loss-global": {"kind": "load_balancing_loss", "coefficient": 1.0, "scope": "global_batch"},
    "group_balancing_loss-global": {
        "kind": "group_balancing_loss",
        "coefficient": 1.0,
        "num_groups": NUM_GROUPS,
        "scope": "global_batch",
    },
    "loss_free_bias-proportional": {"kind": "loss_free_bias", "update_rate": 0.01, "update": "proportional"},
    "quantile_balancing-smooth": {"kind": "quantile_balancing", "smoothing": 0.5},
}
"""Configs beyond the smallest of each kind."""
SPLITS_THE_STEP = {"load_balancing_loss", "group_balancing_loss"}
"""Methods that are defined over a micro-batch, with the options of `example_config`."""


def model_and_balancer(kind: str) -> tuple[Transformer, Balancer]:
    balancing = [example_config(BalancerConfig, kind).model_dump()]
    model = tiny_model(model_config(moe=moe_fields(balancing=balancing)))
    (balancer,) = build_balancers(model.config.moe)
    return model, balancer


def balancing_methods() -> dict[str, dict[str, Any]]:
    """Returns the smallest config of every kind, a loss at coefficient 1, and the variants, by a name for test ids."""
    smallest: dict[str, dict[str, Any]] = {}
    for kind, config_class in config_classes(BalancerConfig).items():
        fields = {"coefficient": 1.0} if "coefficient" in config_class.model_fields else {}
        smallest[kind] = example_config(BalancerConfig, kind, **fields).model_dump()
    return smallest | VARIANTS


METHODS = balancing_methods()


def balancer_of(name: str) -> Balancer:
    config = config_classes(BalancerConfig)[METHODS[name]["kind"]].model_validate(METHODS[name])
    return BALANCERS[METHODS[name]["kind"]](config)


def layer_routing(logits_TE: Tensor, *, score: str = "softmax", num_sequences: int = 1) -> LayerRouting:
    return LayerRouting.of(
        route(logits_TE, top_k=TOP_K, score=score, normalize=True), layer=0, num_sequences=num_sequences
    )


LOAD_LOSSES = [
    name
    for name, method in METHODS.items()
    if method["kind"] not in NOT_OF_THE_LOAD
    and balancer_of(name).loss([layer_routing(torch.zeros(4, NUM_EXPERTS))]) is not None
]
every_load_loss = pytest.mark.parametrize("name", LOAD_LOSSES)


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
    tokens_BL = random_tokens(2, 16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    balance(model, [tokens_BL])
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed or balancer.loss(model(tokens_BL).routings) is not None
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
        for seed in range(3):
            if restarted:
                (balancer,) = build_balancers(model.config.moe)
            routings = model(random_tokens(2, 16, seed=seed)).routings
            observed = balancer.observe(model, routings)
            balancer.after_step(model, demand(routings).float(), observed=observed)
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


def test_every_loss_but_those_named_is_of_the_load() -> None:
    assert {METHODS[name]["kind"] for name in LOAD_LOSSES} == {
        "load_balancing_loss",
        "sequence_balancing_loss",
        "group_balancing_loss",
    }


@every_load_loss
def test_loss_is_one_when_the_load_is_even(name: str) -> None:
    # Token t prefers experts t, t+1, ..., cyclically: every expert is chosen equally often.
    ring_EE = torch.stack([torch.linspace(3.0, 0.0, NUM_EXPERTS).roll(token) for token in range(NUM_EXPERTS)])
    routing = layer_routing(ring_EE.repeat(6, 1), num_sequences=3)
    torch.testing.assert_close(balancer_of(name).loss([routing]), torch.tensor(1.0))


@every_load_loss
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_loss_is_experts_over_choices_when_all_tokens_choose_the_same(name: str, score: str) -> None:
    logits_TE = torch.full((12, NUM_EXPERTS), -40.0)
    logits_TE[:, :TOP_K] = 40.0
    loss = balancer_of(name).loss([layer_routing(logits_TE, score=score, num_sequences=3)])
    # All of one group is the collapse that a balance between groups sees.
    expected = NUM_GROUPS if METHODS[name]["kind"] == "group_balancing_loss" else NUM_EXPERTS / TOP_K
    torch.testing.assert_close(loss, torch.tensor(float(expected)))


@every_load_loss
@pytest.mark.parametrize("shift", [0.0, -50.0, -90.0])
def test_tiny_sigmoids_do_not_hide_a_collapse(name: str, shift: float) -> None:
    # With an epsilon in a normaliser, scores of exp(-90) would make every probability, and the loss, about 0.
    logits_TE = torch.full((12, NUM_EXPERTS), -20.0)
    logits_TE[:, :TOP_K] = 0.0
    loss = balancer_of(name).loss([layer_routing(logits_TE + shift, score="sigmoid", num_sequences=3)])
    assert loss > 1.9


@every_load_loss
def test_descent_takes_load_off_a_hot_expert(name: str) -> None:
    model = model_with_hot_expert(METHODS[name])
    tokens_BL = random_tokens(8, 16)
    before = share_of(model, tokens_BL, 3)
    assert before == 4.0  # E/K: every token chooses it
    routers = [layer.router.weight for layer in model.moe_layers()]
    optimizer = torch.optim.Adam(routers, lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss = balancer_of(name).loss(model(tokens_BL).routings)
        loss.backward()
        assert all(weight.grad.abs().sum() > 0 for weight in routers)
        optimizer.step()
    # A balance between groups is content when the hot expert's group has half of the load.
    assert share_of(model, tokens_BL, 3) < (3.0 if METHODS[name]["kind"] == "group_balancing_loss" else 1.5)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in LOAD_LOSSES and name not in NOT_OF_THE_LOAD])
def test_hot_expert_load_falls_without_a_loss(name: str) -> None:
    model = model_with_hot_expert(METHODS[name] | ({"update_rate": 0.02} if "update_rate" in METHODS[name] else {}))
    tokens_BL = random_tokens(8, 16)
    assert share_of(model, tokens_BL, 3) == 4.0
    weights = [parameter.clone() for parameter in model.parameters()]
    for _ in range(80):
        balance(model, [tokens_BL])
    assert share_of(model, tokens_BL, 3) < 1.5
    assert all(torch.equal(old, new) for old, new in zip(weights, model.parameters(), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_step_does_not_depend_on_how_it_is_split(name: str) -> None:
    """Gradients and biases after a step of 1, 2 and 4 micro-batches: those of the step as one batch.

    In float64, where only the order of additions is left to differ.
    """
    outcomes = []
    for size in (4, 2, 1):
        model = tiny_model(model_config(moe=moe_fields(balancing=[METHODS[name]]))).double()
        micro_batches = random_tokens(4, 9).split(size)
        gradients = gradients_of_step(model, micro_batches)
        balance(model, micro_batches)
        outcomes.append(gradients | dict(model.named_buffers()))
    whole = outcomes[0]
    difference = max((split[key] - whole[key]).abs().max().item() for split in outcomes[1:] for key in whole)
    if name in SPLITS_THE_STEP:
        assert difference > 1e-4
    else:
        assert difference < 1e-11
