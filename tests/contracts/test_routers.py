"""Every router: routes all tokens, in float32; a learned one differentiably and following a selection bias."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kernels import Routing
from tests.support.component_configs import config_classes, example_config
from tests.support.models import CPU, META, model_config, moe_fields, random_rows, random_tokens
from trainer.config.routers import RouterConfig
from trainer.model.build import build_model, parameter_roles
from trainer.model.size import model_size
from trainer.routers import ROUTERS
from trainer.routers.base import Router

every_kind = pytest.mark.parametrize("kind", ROUTERS)
every_learned_kind = pytest.mark.parametrize(
    "kind", [kind for kind, config in config_classes(RouterConfig).items() if config.is_learned]
)
DIM, NUM_EXPERTS, TOP_K, NUM_TOKENS = 16, 6, 2, 40


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def router_of(kind: str) -> Router:
    router = ROUTERS[kind](example_config(RouterConfig, kind), dim=DIM, num_experts=NUM_EXPERTS, top_k=TOP_K)
    for seed, parameter in enumerate(router.parameters()):
        parameter.data.copy_(random_rows(*parameter.shape, seed=seed) * 0.5)
    return router


def routed(router: Router, x_TD: Tensor, bias_E: Tensor | None = None) -> Routing:
    return router(x_TD, bias_E, random_tokens(1, len(x_TD)).flatten())


def test_registry_has_the_kinds_of_the_config() -> None:
    assert set(ROUTERS) == set(config_classes(RouterConfig))


@every_kind
def test_routing_accounts_for_every_pair(kind: str) -> None:
    routing = routed(router_of(kind), random_rows(NUM_TOKENS, DIM))
    num_pairs = routing.num_pairs
    assert routing.num_tokens == NUM_TOKENS
    assert routing.counts_E.shape == (NUM_EXPERTS,)
    assert routing.counts_E.sum() == num_pairs
    assert torch.equal(routing.offsets_E, routing.counts_E.cumsum(0).int())
    assert torch.equal(routing.permutation_N[routing.inverse_N], torch.arange(num_pairs))
    assert ((routing.expert_ids_TK >= 0) & (routing.expert_ids_TK < NUM_EXPERTS)).all()
    assert all(len(set(ids)) == TOP_K for ids in routing.expert_ids_TK.tolist())
    assert (routing.weights_TK >= 0).all()


@every_kind
def test_statistics_are_finite_and_of_this_routing(kind: str) -> None:
    routing = routed(router_of(kind), random_rows(NUM_TOKENS, DIM))
    stats = routing.stats
    assert stats.stats_S.isfinite().all()
    assert stats.slot("margin_sum") >= 0
    assert torch.equal(stats.counts_E, routing.counts_E)
    torch.testing.assert_close(stats.gate_mass_E.sum(), routing.weights_TK.sum())


@every_kind
def test_evaluation_is_reproducible_and_draws_nothing(kind: str) -> None:
    router, x_TD = router_of(kind).eval(), random_rows(NUM_TOKENS, DIM)
    before = torch.get_rng_state()
    first, second = routed(router, x_TD), routed(router, x_TD)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.expert_ids_TK, second.expert_ids_TK)
    assert torch.equal(first.weights_TK, second.weights_TK)


@every_kind
def test_training_is_reproducible_from_the_global_generator(kind: str) -> None:
    router, x_TD = router_of(kind), random_rows(NUM_TOKENS, DIM)
    state = torch.get_rng_state()
    first = routed(router, x_TD)
    torch.set_rng_state(state)
    assert torch.equal(routed(router, x_TD).expert_ids_TK, first.expert_ids_TK)


@pytest.mark.parametrize("kind", [kind for kind in ROUTERS if kind != "random"])  # whose draws are by position
def test_evaluation_routes_each_token_on_its_own(kind: str) -> None:
    router, x_TD = router_of(kind).eval(), random_rows(NUM_TOKENS, DIM)
    tokens_T = random_tokens(1, NUM_TOKENS).flatten()
    order_T = torch.randperm(NUM_TOKENS)
    straight, permuted = router(x_TD, None, tokens_T), router(x_TD[order_T], None, tokens_T[order_T])
    assert torch.equal(permuted.expert_ids_TK, straight.expert_ids_TK[order_T])
    torch.testing.assert_close(permuted.weights_TK, straight.weights_TK[order_T])


@every_kind
def test_model_trains_with_it(kind: str) -> None:
    router = example_config(RouterConfig, kind).model_dump()
    model = build_model(model_config(moe=moe_fields(router=router)), seed=0, device=CPU)
    tokens_BL = random_tokens(4, 17)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(10):
        loss = model(tokens_BL[:, :-1], tokens_BL[:, 1:]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(parameter.grad is not None for parameter in model.parameters())


@every_kind
def test_weights_and_probabilities_are_finite_float32(kind: str) -> None:
    routing = routed(router_of(kind), random_rows(NUM_TOKENS, DIM) * 50.0)
    for tensor in (routing.weights_TK, routing.prob_sum_E, routing.z_sum):
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
    torch.testing.assert_close(routing.prob_sum_E.sum(), torch.tensor(float(NUM_TOKENS)), rtol=1e-5, atol=0)


@every_learned_kind
def test_gradient_flows_from_weights_and_statistics(kind: str) -> None:
    for pick in ("weights_TK", "prob_sum_E", "z_sum"):
        router = router_of(kind)
        output = getattr(routed(router, random_rows(NUM_TOKENS, DIM)), pick)
        (output.flatten() * random_rows(output.numel(), seed=5)).sum().backward()
        for parameter in router.parameters():
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().sum() > 0


@every_kind
def test_autocast_changes_nothing(kind: str) -> None:
    router, x_TD = router_of(kind), random_rows(NUM_TOKENS, DIM)
    state = torch.get_rng_state()
    expected = routed(router, x_TD)
    torch.set_rng_state(state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = routed(router, x_TD)
    assert torch.equal(routing.expert_ids_TK, expected.expert_ids_TK)
    assert torch.equal(routing.weights_TK, expected.weights_TK)


@every_learned_kind
def test_selection_bias_raises_an_expert_load(kind: str) -> None:
    router, x_TD = router_of(kind), random_rows(NUM_TOKENS, DIM)
    none_E = torch.zeros(NUM_EXPERTS)
    favoured_E = none_E.clone()
    favoured_E[4] = 0.5
    assert routed(router, x_TD, favoured_E).counts_E[4] > routed(router, x_TD, none_E).counts_E[4]


@every_kind
def test_model_with_it_has_its_closed_form_size_and_role(kind: str) -> None:
    router = example_config(RouterConfig, kind).model_dump()
    config = model_config(moe=moe_fields(router=router))
    model = build_model(config, seed=0, device=META)
    assert model_size(config).total == sum(parameter.numel() for parameter in model.parameters())
    roles = parameter_roles(model)
    assert {roles[name] for name in roles if ".router." in name} == (
        {"router"} if config.moe.router.is_learned else set()
    )
