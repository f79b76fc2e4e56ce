"""Every router: routes all tokens, in float32, differentiably, and follows a selection bias."""

import pytest
import torch

from tests.support.component_configs import config_classes, example_config
from tests.support.models import META, model_config, moe_fields, random_rows
from trainer.config.routers import RouterConfig
from trainer.model.build import build_model, parameter_roles
from trainer.model.size import model_size
from trainer.routers import ROUTERS
from trainer.routers.base import Router

every_kind = pytest.mark.parametrize("kind", ROUTERS)
DIM, NUM_EXPERTS, TOP_K, NUM_TOKENS = 16, 6, 2, 40


def router_of(kind: str) -> Router:
    router = ROUTERS[kind](example_config(RouterConfig, kind), dim=DIM, num_experts=NUM_EXPERTS, top_k=TOP_K)
    for seed, parameter in enumerate(router.parameters()):
        parameter.data.copy_(random_rows(*parameter.shape, seed=seed) * 0.5)
    return router


def test_registry_has_the_kinds_of_the_config() -> None:
    assert set(ROUTERS) == set(config_classes(RouterConfig))


@every_kind
def test_routing_accounts_for_every_pair(kind: str) -> None:
    routing = router_of(kind)(random_rows(NUM_TOKENS, DIM), None)
    num_pairs = routing.num_pairs
    assert routing.num_tokens == NUM_TOKENS
    assert routing.counts_E.shape == (NUM_EXPERTS,)
    assert routing.counts_E.sum() == num_pairs
    assert torch.equal(routing.offsets_E, routing.counts_E.cumsum(0).int())
    assert torch.equal(routing.permutation_N[routing.inverse_N], torch.arange(num_pairs))
    assert ((routing.expert_ids_TK >= 0) & (routing.expert_ids_TK < NUM_EXPERTS)).all()


@every_kind
def test_weights_and_probabilities_are_finite_float32(kind: str) -> None:
    routing = router_of(kind)(random_rows(NUM_TOKENS, DIM) * 50.0, None)
    for tensor in (routing.weights_TK, routing.prob_sum_E, routing.z_sum):
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
    torch.testing.assert_close(routing.prob_sum_E.sum(), torch.tensor(float(NUM_TOKENS)), rtol=1e-5, atol=0)


@every_kind
def test_gradient_flows_from_weights_and_statistics(kind: str) -> None:
    for pick in ("weights_TK", "prob_sum_E", "z_sum"):
        router = router_of(kind)
        output = getattr(router(random_rows(NUM_TOKENS, DIM), None), pick)
        (output.flatten() * random_rows(output.numel(), seed=5)).sum().backward()
        for parameter in router.parameters():
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().sum() > 0


@every_kind
def test_autocast_changes_nothing(kind: str) -> None:
    router, x_TD = router_of(kind), random_rows(NUM_TOKENS, DIM)
    expected = router(x_TD, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = router(x_TD, None)
    assert torch.equal(routing.expert_ids_TK, expected.expert_ids_TK)
    assert torch.equal(routing.weights_TK, expected.weights_TK)


@every_kind
def test_selection_bias_raises_an_expert_load(kind: str) -> None:
    router, x_TD = router_of(kind), random_rows(NUM_TOKENS, DIM)
    none_E = torch.zeros(NUM_EXPERTS)
    favoured_E = none_E.clone()
    favoured_E[4] = 0.5
    assert router(x_TD, favoured_E).counts_E[4] > router(x_TD, none_E).counts_E[4]


@every_kind
def test_model_with_it_has_its_closed_form_size_and_role(kind: str) -> None:
    router = example_config(RouterConfig, kind).model_dump()
    config = model_config(moe=moe_fields(router=router))
    model = build_model(config, seed=0, device=META)
    assert model_size(config).total == sum(parameter.numel() for parameter in model.parameters())
    roles = parameter_roles(model)
    assert {roles[name] for name in roles if ".router." in name} == {"router"}
