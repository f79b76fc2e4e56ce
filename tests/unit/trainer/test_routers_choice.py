"""Routers that choose by more than the scores: groups, balanced assignments, hashes, chance, jitter."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.support.component_configs import config_classes, example_config
from tests.support.models import model_config, moe_fields, random_rows, random_tokens, tiny_model
from tests.support.training import STEP_TOKENS, exact_columns, run_training, train_config
from trainer.config.routers import (
    GroupLimitedRouterConfig,
    HashRouterConfig,
    RandomRouterConfig,
    RouterConfig,
    SinkhornRouterConfig,
    TopKRouterConfig,
)
from trainer.routers.base import LinearRouter
from trainer.routers.group_limited import GroupLimitedRouter
from trainer.routers.hash import HashRouter, mixed
from trainer.routers.looking_ahead import routed_over_chunks
from trainer.routers.random import RandomRouter
from trainer.routers.sinkhorn import SinkhornRouter, transport_plan
from trainer.routers.top_k import TopKRouter

DIM, NUM_EXPERTS, NUM_GROUPS, TOP_K = 16, 12, 4, 4
GROUP_SIZE = NUM_EXPERTS // NUM_GROUPS


def with_weights(router: LinearRouter) -> LinearRouter:
    router.weight.data.copy_(random_rows(*router.weight.shape, seed=3) * 0.5)
    return router


def group_limited(**fields: Any) -> LinearRouter:
    config = GroupLimitedRouterConfig.model_validate({"num_groups": NUM_GROUPS, "groups_per_token": 2} | fields)
    return with_weights(GroupLimitedRouter(config, dim=DIM, num_experts=NUM_EXPERTS, top_k=TOP_K))


@pytest.mark.parametrize("group_score", ["best", "best_two"])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("biased", [False, True])
def test_choice_is_the_best_experts_of_the_best_groups(group_score: str, score: str, biased: bool) -> None:
    router, x_TD = group_limited(group_score=group_score, score=score), random_rows(30, DIM)
    bias_E = random_rows(NUM_EXPERTS, seed=8) * 0.3
    routing = router(x_TD, bias_E if biased else None)
    logits_TE = x_TD @ router.weight.detach().t()
    scores_TE = logits_TE.softmax(-1) if score == "softmax" else logits_TE.sigmoid()
    num_counted = 1 if group_score == "best" else 2
    for scores, ids in zip(scores_TE + bias_E * biased, routing.expert_ids_TK.tolist(), strict=True):
        groups = scores.tolist()
        group_scores = [
            sum(sorted(groups[first : first + GROUP_SIZE])[-num_counted:])
            for first in range(0, NUM_EXPERTS, GROUP_SIZE)
        ]
        allowed = sorted(range(NUM_GROUPS), key=lambda group: -group_scores[group])[:2]
        experts = [expert for expert in range(NUM_EXPERTS) if expert // GROUP_SIZE in allowed]
        assert ids == sorted(experts, key=lambda expert: -groups[expert])[:TOP_K]


def test_all_groups_allowed_is_plain_top_k() -> None:
    grouped = group_limited(groups_per_token=NUM_GROUPS, score="sigmoid", scale=2.5)
    plain = with_weights(
        TopKRouter(TopKRouterConfig(score="sigmoid", scale=2.5), dim=DIM, num_experts=NUM_EXPERTS, top_k=TOP_K)
    )
    x_TD, bias_E = random_rows(30, DIM), random_rows(NUM_EXPERTS, seed=8) * 0.3
    ours, theirs = grouped(x_TD, bias_E), plain(x_TD, bias_E)
    assert torch.equal(ours.expert_ids_TK, theirs.expert_ids_TK)
    assert torch.equal(ours.weights_TK, theirs.weights_TK)
    torch.testing.assert_close(ours.stats.stats_S, theirs.stats.stats_S, rtol=1e-6, atol=1e-6)  # of float32 terms


def test_margin_is_zero_where_no_other_expert_was_allowed() -> None:
    router = group_limited(groups_per_token=2, group_score="best")
    router.top_k = 2 * GROUP_SIZE
    assert router(random_rows(30, DIM), None).stats.slot("margin_sum") == 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_groups": 3, "groups_per_token": 1}, "router.num_groups=3 does not divide num_experts=8"),
        ({"num_groups": 4, "groups_per_token": 5}, "router.groups_per_token=5 exceeds num_groups=4"),
        ({"num_groups": 8, "groups_per_token": 4}, "needs groups of 2 experts or more"),
        ({"num_groups": 4, "groups_per_token": 1}, "groups of 2 experts hold fewer than top_k=3"),
    ],
)
def test_groups_that_cannot_hold_the_choice_are_refused(fields: dict[str, int], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        model_config(moe=moe_fields(num_experts=8, top_k=3, router={"kind": "group_limited"} | fields))


def test_transport_plan_has_even_loads_and_whole_tokens() -> None:
    plan_TE = transport_plan(random_rows(60, 6) * 3 + torch.tensor([9.0, 0, 0, 0, 0, 0]), num_iterations=60)
    torch.testing.assert_close(plan_TE.sum(dim=1), torch.ones(60))
    torch.testing.assert_close(plan_TE.sum(dim=0), torch.full((6,), 10.0), rtol=1e-3, atol=0)


def test_groups_have_transport_plans_of_their_own() -> None:
    logits_TE = random_rows(60, 6) * 3
    together_TE = transport_plan(logits_TE, num_iterations=8, num_groups=3)
    alone = [transport_plan(logits_SE, num_iterations=8) for logits_SE in logits_TE.chunk(3)]
    torch.testing.assert_close(together_TE, torch.cat(alone))


def test_transport_plan_survives_extreme_logits() -> None:
    plan_TE = transport_plan(torch.tensor([[1e4, 0.0], [1e4, -1e4]]), num_iterations=8)
    assert plan_TE.isfinite().all()


def sinkhorn(**fields: Any) -> LinearRouter:
    config = SinkhornRouterConfig.model_validate(fields)
    router = with_weights(SinkhornRouter(config, dim=DIM, num_experts=8, top_k=2))
    router.weight.data[3, 0] += 3.0
    return router


def hot_rows(num_tokens: int) -> torch.Tensor:
    """Returns rows that one expert of `sinkhorn` wants most."""
    x_TD = random_rows(num_tokens, DIM)
    x_TD[:, 0] = 2.0
    return x_TD


def test_sinkhorn_balances_in_training_what_the_scores_alone_do_not() -> None:
    router, x_TD = sinkhorn(), hot_rows(256)
    mean = 256 * 2 / 8
    training = router(x_TD, None).counts_E.max() / mean
    evaluation = router.eval()(x_TD, None).counts_E.max() / mean
    assert training < 1.6
    assert evaluation > 3.5


def test_sinkhorn_chooses_as_top_k_in_evaluation_and_weighs_by_the_scores_always() -> None:
    router, x_TD = sinkhorn(normalize=False), hot_rows(40)
    scores_TE = (x_TD @ router.weight.detach().t()).softmax(-1)
    for mode in (True, False):
        routing = router.train(mode)(x_TD, None)
        torch.testing.assert_close(routing.weights_TK.detach(), scores_TE.gather(1, routing.expert_ids_TK))
    assert torch.equal(routing.expert_ids_TK, scores_TE.topk(2).indices)


def test_sinkhorn_balances_in_evaluation_too_where_chunks_are_probed() -> None:
    router, x_TD = sinkhorn().eval(), hot_rows(256)
    with routed_over_chunks(router, 256):
        assert torch.equal(router(x_TD, None).expert_ids_N, router.train()(x_TD, None).expert_ids_N)


def hashed(tokens_T: torch.Tensor, *, seed: int = 0, num_experts: int = 8, top_k: int = 2) -> torch.Tensor:
    router = HashRouter(HashRouterConfig(seed=seed), dim=DIM, num_experts=num_experts, top_k=top_k)
    return router(random_rows(len(tokens_T), DIM, seed=seed), None, tokens_T).expert_ids_TK


def test_hash_depends_on_the_token_alone() -> None:
    tokens_T = torch.tensor([5, 9, 5, 63, 9])
    ids_TK = hashed(tokens_T)
    assert torch.equal(ids_TK[0], ids_TK[2])
    assert torch.equal(ids_TK[1], ids_TK[4])
    assert not torch.equal(hashed(torch.arange(64), seed=1), hashed(torch.arange(64)))


def test_hash_spreads_a_vocabulary_as_chance_would() -> None:
    counts_E = torch.bincount(hashed(torch.arange(50_000), num_experts=16, top_k=3).flatten(), minlength=16)
    expected = 50_000 * 3 / 16
    assert (counts_E - expected).abs().max() < 4 * expected**0.5  # 4 standard deviations


def test_mixing_is_the_published_function() -> None:
    assert mixed(torch.tensor([0, 1, 2**32 - 1, 2**32])).tolist() == [_lowbias32(x) for x in (0, 1, 2**32 - 1, 0)]


def _lowbias32(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def test_hash_without_tokens_is_refused() -> None:
    router = HashRouter(HashRouterConfig(), dim=DIM, num_experts=8, top_k=2)
    with pytest.raises(ValueError, match="tokens_T is missing"):
        router(random_rows(4, DIM), None)


def test_model_hands_its_tokens_to_the_router() -> None:
    model = tiny_model(model_config(moe=moe_fields(router={"kind": "hash"})))
    tokens_BL = random_tokens(2, 8)
    expected_TK = hashed(tokens_BL.flatten(), num_experts=4)
    assert all(torch.equal(routing.expert_ids_N, expected_TK.flatten()) for routing in model(tokens_BL).routings)


def test_random_draws_anew_in_training_and_alike_in_evaluation() -> None:
    router, x_TD = RandomRouter(RandomRouterConfig(), dim=DIM, num_experts=8, top_k=2), random_rows(4000, DIM)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = router(x_TD, None), router(x_TD, None)
    assert not torch.equal(first.expert_ids_TK, second.expert_ids_TK)
    assert (first.counts_E - 1000).abs().max() < 4 * 1000**0.5
    assert (first.weights_TK == 0.5).all()
    assert torch.equal(router.eval()(x_TD, None).expert_ids_TK, router(x_TD, None).expert_ids_TK)


@pytest.mark.parametrize("kind", ["hash", "random"])
def test_balancing_a_router_that_learns_nothing_is_refused(kind: str) -> None:
    balancing = [{"kind": "load_balancing_loss", "coefficient": 0.01}]
    with pytest.raises(ValidationError, match=f"cannot act on router.kind={kind}"):
        model_config(moe=moe_fields(router={"kind": kind}, balancing=balancing))


def test_jitter_moves_the_choice_in_training_only_and_within_its_bounds() -> None:
    router = with_weights(TopKRouter(TopKRouterConfig(input_jitter=0.2), dim=DIM, num_experts=8, top_k=2))
    x_TD = random_rows(500, DIM)
    plain_TE = x_TD @ router.weight.detach().t()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        logits_TE = router.logits(x_TD).detach()
    moved_TE = (logits_TE - plain_TE).abs()
    assert moved_TE.max() > 0
    assert (moved_TE <= 0.2 * (x_TD.abs() @ router.weight.detach().abs().t()) + 1e-5).all()
    torch.testing.assert_close(router.eval().logits(x_TD), plain_TE)


def test_noise_on_the_logits_has_its_deviation_over_the_number_of_experts_in_training_only() -> None:
    router = with_weights(TopKRouter(TopKRouterConfig(logit_noise=2.0), dim=DIM, num_experts=8, top_k=2))
    x_TD = random_rows(500, DIM)
    plain_TE = x_TD @ router.weight.detach().t()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        noise_TE = router.logits(x_TD).detach() - plain_TE
    # 4000 draws: their mean and deviation are within 5 standard errors.
    assert abs(noise_TE.mean().item()) < 5 * 0.25 / 4000**0.5
    assert noise_TE.std().item() == pytest.approx(2.0 / 8, abs=5 * 0.25 / 8000**0.5)
    torch.testing.assert_close(router.eval().logits(x_TD), plain_TE)


@pytest.mark.parametrize(
    "router",
    [
        {"kind": "random"},
        {"kind": "hash"},
        {"kind": "sinkhorn"},
        {"kind": "expert_choice", "predictor": True},
        {"kind": "group_limited", "num_groups": 2, "groups_per_token": 1},
        {"input_jitter": 0.1, "logit_noise": 1.0},
    ],
    ids=lambda router: router.get("kind", "noise"),
)
def test_run_stopped_and_resumed_is_bit_equal(tmp_path: Path, router: dict[str, Any]) -> None:
    moe = {"num_experts": 4, "top_k": 2, "hidden_dim": 16, "router": router}
    model = train_config().model.model_dump() | {"moe": moe}
    whole = run_training(train_config(num_steps=6, model=model), tmp_path / "whole")
    # Evaluations in between: they must not draw from the generators that training draws from.
    config = train_config(num_steps=6, model=model)
    stopped = run_training(config, tmp_path / "run", stop_at_tokens=3 * STEP_TOKENS, rung_tokens=(2 * STEP_TOKENS,))
    assert stopped.last.checkpoint is not None
    resumed = run_training(config, tmp_path / "run", resume_from=stopped.last.checkpoint.folder)
    assert resumed.weights().keys() == whole.weights().keys()
    assert all(torch.equal(tensor, whole.weights()[name]) for name, tensor in resumed.weights().items())
    assert resumed.last.evaluation == whole.last.evaluation
    assert resumed.last.summary.lookahead == whole.last.summary.lookahead
    for kind in ("scalars", "router"):
        assert exact_columns(resumed.table(kind)).equals(exact_columns(whole.table(kind))), kind


@pytest.mark.parametrize("kind", config_classes(RouterConfig))
def test_router_telemetry_is_complete_and_finite(tmp_path: Path, kind: str) -> None:
    router = example_config(RouterConfig, kind).model_dump()
    moe = {"num_experts": 4, "top_k": 2, "hidden_dim": 16, "router": router}
    finished = run_training(train_config(num_steps=3, model=train_config().model.model_dump() | {"moe": moe}), tmp_path)
    table = finished.table("router")
    assert table.num_rows == 3 * 2  # steps, layers
    for name in table.column_names:
        if name.startswith("router/") and "bias" not in name:
            assert np.isfinite(np.asarray(table[name].to_pylist(), dtype=float)).all(), name
