"""Every router: routes all tokens, in float32; a learned one differentiably and following a selection bias."""

import re
from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels import Routing, assignments
from tests.support.component_configs import config_classes, router_examples
from tests.support.models import CPU, META, model_config, moe_fields, random_rows, random_tokens
from trainer.config.routers import RouterConfig
from trainer.model.build import build_model, parameter_roles
from trainer.model.routing import LayerRouting
from trainer.model.size import model_size
from trainer.routers import ROUTERS
from trainer.routers.base import Router

EXAMPLES = router_examples()
every_router = pytest.mark.parametrize("name", EXAMPLES)
every_learned_router = pytest.mark.parametrize("name", [name for name, config in EXAMPLES.items() if config.is_learned])
DIM, NUM_EXPERTS, TOP_K, NUM_TOKENS, NUM_SEQUENCES = 16, 6, 2, 40, 4


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def router_of(name: str) -> Router:
    config = EXAMPLES[name]
    router = ROUTERS[config.kind](config, dim=DIM, num_experts=NUM_EXPERTS, top_k=TOP_K)
    for seed, parameter in enumerate(router.parameters()):
        parameter.data.copy_(random_rows(*parameter.shape, seed=seed) * 0.5)
    return router


def routed(router: Router, x_TD: Tensor, bias_E: Tensor | None = None) -> Routing:
    return router(x_TD, bias_E, random_tokens(1, len(x_TD)).flatten(), num_sequences=NUM_SEQUENCES)


def chosen(routing: Routing) -> Tensor:
    """Returns bool [T, E]: whether the token has the expert."""
    return assignments(
        routing.expert_ids_N, routing.token_ids_N, num_tokens=routing.num_tokens, num_experts=NUM_EXPERTS
    )


def weights(routing: Routing) -> Tensor:
    """Returns float32 [T, E], 0 where the token has not the expert."""
    return torch.zeros(routing.num_tokens, NUM_EXPERTS).masked_scatter(chosen(routing), in_cell_order(routing))


def in_cell_order(routing: Routing) -> Tensor:
    """Returns the detached weights of the pairs by token, then by expert."""
    tokens_N = routing.row_tokens_N[routing.inverse_N]
    return routing.weights_N.detach()[(tokens_N * NUM_EXPERTS + routing.expert_ids_N).argsort()]


def own_loss(routing: Routing | LayerRouting) -> Tensor | float:
    """Returns what the router adds to the training loss."""
    return 0.0 if routing.auxiliary_loss is None else routing.auxiliary_loss


def test_registry_has_the_kinds_of_the_config() -> None:
    assert set(ROUTERS) == set(config_classes(RouterConfig))


@every_router
def test_routing_accounts_for_every_pair(name: str) -> None:
    routing = routed(router_of(name), random_rows(NUM_TOKENS, DIM))
    num_pairs = routing.num_pairs
    assert routing.num_tokens == NUM_TOKENS
    assert routing.counts_E.shape == (NUM_EXPERTS,)
    assert routing.counts_E.sum() == num_pairs
    assert torch.equal(routing.offsets_E, routing.counts_E.cumsum(0).int())
    assert torch.equal(routing.permutation_N[routing.inverse_N], torch.arange(num_pairs))
    assert ((routing.expert_ids_N >= 0) & (routing.expert_ids_N < NUM_EXPERTS)).all()
    assert chosen(routing).sum() == num_pairs  # none twice
    if routing.is_uniform:
        assert (chosen(routing).sum(dim=1) == TOP_K).all()
    assert torch.equal(chosen(routing).sum(dim=0), routing.counts_E)
    assert (routing.weights_N >= 0).all()


@every_router
def test_statistics_are_finite_and_of_this_routing(name: str) -> None:
    routing = routed(router_of(name), random_rows(NUM_TOKENS, DIM))
    stats = routing.stats
    assert stats.stats_S.isfinite().all()
    assert stats.slot("margin_sum") >= 0
    assert torch.equal(stats.counts_E, routing.counts_E)
    torch.testing.assert_close(stats.gate_mass_E.sum(), routing.weights_N.sum())


@every_router
def test_evaluation_is_reproducible_and_draws_nothing(name: str) -> None:
    router, x_TD = router_of(name).eval(), random_rows(NUM_TOKENS, DIM)
    before = torch.get_rng_state()
    first, second = routed(router, x_TD), routed(router, x_TD)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.expert_ids_N, second.expert_ids_N)
    assert torch.equal(first.weights_N, second.weights_N)


@every_router
def test_training_is_reproducible_from_the_global_generator(name: str) -> None:
    router, x_TD = router_of(name), random_rows(NUM_TOKENS, DIM)
    state = torch.get_rng_state()
    first = routed(router, x_TD)
    torch.set_rng_state(state)
    assert torch.equal(routed(router, x_TD).expert_ids_N, first.expert_ids_N)


@pytest.mark.parametrize(
    "name",
    # The draws of the random router are by position.
    [name for name, config in EXAMPLES.items() if config.kind != "random" and not config.evaluates_ahead],
)
def test_evaluation_routes_each_token_on_its_own(name: str) -> None:
    router, x_TD = router_of(name).eval(), random_rows(NUM_TOKENS, DIM)
    tokens_T = random_tokens(1, NUM_TOKENS).flatten()
    order_T = torch.randperm(NUM_TOKENS)
    straight, permuted = router(x_TD, None, tokens_T), router(x_TD[order_T], None, tokens_T[order_T])
    assert torch.equal(chosen(permuted), chosen(straight)[order_T])
    torch.testing.assert_close(weights(permuted), weights(straight)[order_T])


@every_router
def test_training_never_waits_for_the_device(name: str) -> None:
    # A fake tensor has no values: what reads one, or has a shape that depends on one, raises.
    with FakeTensorMode():
        router = ROUTERS[EXAMPLES[name].kind](EXAMPLES[name], dim=DIM, num_experts=NUM_EXPERTS, top_k=TOP_K)
        x_TD = torch.randn(NUM_TOKENS, DIM, requires_grad=True)
        tokens_T = torch.zeros(NUM_TOKENS, dtype=torch.int64)
        routing = router(x_TD, None, tokens_T, num_sequences=NUM_SEQUENCES)
        loss = routing.weights_N.sum() + routing.prob_sum_E.sum() + own_loss(routing)
        if EXAMPLES[name].is_learned:
            loss.backward()


@every_router
def test_model_trains_with_it(name: str) -> None:
    router = EXAMPLES[name].model_dump()
    model = build_model(model_config(moe=moe_fields(router=router)), seed=0, device=CPU)
    tokens_BL = random_tokens(4, 17)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(10):
        _, routings, loss = model(tokens_BL[:, :-1], tokens_BL[:, 1:])
        optimizer.zero_grad()
        (loss + sum(own_loss(routing) for routing in routings)).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("refusal", ["refuses_capacity", "refuses_null_experts"])
@every_router
def test_model_trains_with_capacity_and_null_experts_or_says_why_not(name: str, refusal: str) -> None:
    asked = {"capacity": {"factor": 0.5}} if refusal == "refuses_capacity" else {"num_null_experts": 3}
    fields = moe_fields(router=EXAMPLES[name].model_dump(), **asked)
    reason = getattr(EXAMPLES[name], refusal)
    if reason is not None:
        with pytest.raises(ValidationError, match=re.escape(reason)):
            model_config(moe=fields)
        return
    model = build_model(model_config(moe=fields), seed=0, device=CPU)
    tokens_BL = random_tokens(4, 17)
    output = model(tokens_BL[:, :-1], tokens_BL[:, 1:])
    output.loss.backward()
    for routing in output.routings:
        num_dropped, num_null, *_ = routing.stats.coverage_4.tolist()
        assert (num_null if "num_null_experts" in asked else num_dropped) > 0
        assert routing.counts_E.sum() == 4 * 16 * 2 - num_dropped - num_null
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@every_router
def test_weights_and_probabilities_are_finite_float32(name: str) -> None:
    routing = routed(router_of(name), random_rows(NUM_TOKENS, DIM) * 50.0)
    for tensor in (routing.weights_N, routing.prob_sum_E, routing.z_sum):
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
    torch.testing.assert_close(routing.prob_sum_E.sum(), torch.tensor(float(NUM_TOKENS)), rtol=1e-5, atol=0)


@every_learned_router
def test_gradient_flows_from_weights_and_statistics(name: str) -> None:
    for pick in ("weights_N", "prob_sum_E", "z_sum"):
        router = router_of(name)
        routing = routed(router, random_rows(NUM_TOKENS, DIM))
        output = getattr(routing, pick)
        loss = (output.flatten() * random_rows(output.numel(), seed=5)).sum()
        (loss + own_loss(routing)).backward()
        for parameter in router.parameters():
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().sum() > 0


@every_router
def test_autocast_changes_nothing(name: str) -> None:
    router, x_TD = router_of(name), random_rows(NUM_TOKENS, DIM)
    state = torch.get_rng_state()
    expected = routed(router, x_TD)
    torch.set_rng_state(state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = routed(router, x_TD)
    assert torch.equal(routing.expert_ids_N, expected.expert_ids_N)
    assert torch.equal(routing.weights_N, expected.weights_N)


@pytest.mark.parametrize(
    "name",
    [name for name, each in EXAMPLES.items() if each.is_learned and each.refuses_balancing("loss_free_bias") is None],
)
def test_selection_bias_raises_an_expert_load(name: str) -> None:
    router, x_TD = router_of(name), random_rows(NUM_TOKENS, DIM)
    none_E = torch.zeros(NUM_EXPERTS)
    favoured_E = none_E.clone()
    favoured_E[4] = 0.5
    assert routed(router, x_TD, favoured_E).counts_E[4] > routed(router, x_TD, none_E).counts_E[4]


@every_router
def test_model_with_it_has_its_closed_form_size_and_role(name: str) -> None:
    router = EXAMPLES[name].model_dump()
    config = model_config(moe=moe_fields(router=router))
    model = build_model(config, seed=0, device=META)
    assert model_size(config).total == sum(parameter.numel() for parameter in model.parameters())
    roles = parameter_roles(model)
    assert {roles[name] for name in roles if ".router." in name} == (
        {"router"} if config.moe.router.is_learned else set()
    )
