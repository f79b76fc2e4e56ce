"""Balancing methods: the values of their losses, and that they balance."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from kernels import Routing, distribution, route
from tests.support.balancing import balance, gradients_of_step, model_with_hot_expert, share_of
from tests.support.models import model_config, moe_fields, random_rows, random_tokens, tiny_model
from trainer.balancing.base import demand
from trainer.balancing.build import build_balancers
from trainer.balancing.group_balancing_loss import group_balancing_loss
from trainer.balancing.load_balancing_loss import LoadBalancingLoss, load_balancing_loss
from trainer.balancing.loss_free_bias import LossFreeBias
from trainer.balancing.router_z_loss import RouterZLoss
from trainer.balancing.sequence_balancing_loss import sequence_balancing_loss
from trainer.config.balancing import LoadBalancingLossConfig, LossFreeBiasConfig, RouterZLossConfig
from trainer.model.routing import LayerRouting
from trainer.model.transformer import Transformer


def loss_of(routing: Routing) -> Tensor:
    return load_balancing_loss(routing.counts_E, routing.prob_sum_E, num_tokens=routing.num_tokens)


@given(num_experts=st.integers(2, 32), data=st.data())
def test_loss_is_one_when_the_load_is_even(num_experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    copies = data.draw(st.integers(1, 4))
    # Token t prefers experts t, t+1, ..., cyclically: every expert is chosen equally often, by any K.
    ring_EE = torch.stack([torch.linspace(3.0, 0.0, num_experts).roll(token) for token in range(num_experts)])
    routing = route(ring_EE.repeat(copies, 1), top_k=top_k, normalize=True)
    assert routing.counts_E.unique().numel() == 1
    torch.testing.assert_close(loss_of(routing), torch.tensor(1.0), rtol=1e-5, atol=0)


@given(num_experts=st.integers(2, 32), score=st.sampled_from(["softmax", "sigmoid"]), data=st.data())
def test_loss_is_experts_over_choices_when_all_tokens_choose_the_same(
    num_experts: int, score: str, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    logits_TE = torch.full((10, num_experts), -40.0)
    logits_TE[:, :top_k] = 40.0
    routing = route(logits_TE, top_k=top_k, score=score, normalize=True)
    torch.testing.assert_close(loss_of(routing), torch.tensor(num_experts / top_k), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shift", [0.0, -50.0, -90.0])
def test_tiny_sigmoids_do_not_hide_a_collapse(shift: float) -> None:
    # With an epsilon in the normaliser, scores of exp(-90) would make every probability, and the loss, about 0.
    logits_TE = torch.zeros(10, 8)
    logits_TE[:, :2] = 20.0
    routing = route(logits_TE - 20.0 + shift, top_k=2, score="sigmoid", normalize=True)
    assert loss_of(routing) > 1.0 - 1e-6
    if shift < 0:
        torch.testing.assert_close(loss_of(routing), torch.tensor(4.0), rtol=1e-3, atol=0)


def test_training_a_sigmoid_router_on_the_loss_balances_it_and_finds_no_way_around() -> None:
    x_TD = random_rows(256, 16)
    x_TD[:, 0] = 2.0
    weight_ED = random_rows(8, 16, seed=1) * 0.3
    weight_ED[2, 0] += 2.0
    weight_ED.requires_grad_()
    optimizer = torch.optim.Adam([weight_ED], lr=0.03)
    losses = []
    for _ in range(150):
        loss = loss_of(route(x_TD @ weight_ED.t(), top_k=2, score="sigmoid", normalize=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.3
    # The shares see the top K only and the probabilities everything, so 1 can be passed by a little; the way around
    # the loss, all scores under an epsilon, led to 0.
    assert 0.9 < min(losses) < 1.05
    counts_E = route(x_TD @ weight_ED.detach().t(), top_k=2, score="sigmoid", normalize=True).counts_E
    assert counts_E.max() < 1.3 * counts_E.float().mean()


def test_loss_is_averaged_over_layers_and_scaled() -> None:
    routings = [
        LayerRouting.of(route(random_rows(20, 4, seed=seed), top_k=2, normalize=True), layer=seed) for seed in range(3)
    ]
    each = [load_balancing_loss(routing.counts_E, routing.prob_sum_E, num_tokens=20).item() for routing in routings]
    loss = LoadBalancingLoss(LoadBalancingLossConfig(coefficient=0.25)).loss(routings)
    assert loss.item() == pytest.approx(0.25 * sum(each) / 3, rel=1e-6)


def test_z_loss_is_the_mean_squared_logsumexp() -> None:
    logits = [random_rows(20, 4, seed=seed) * 3 for seed in range(2)]
    routings = [
        LayerRouting.of(route(logits_TE, top_k=2, normalize=True), layer=layer)
        for layer, logits_TE in enumerate(logits)
    ]
    expected = 0.5 * torch.stack([logits_TE.logsumexp(-1).square().mean() for logits_TE in logits]).mean()
    torch.testing.assert_close(RouterZLoss(RouterZLossConfig(coefficient=0.5)).loss(routings), expected)


@pytest.mark.parametrize("update", ["sign", "proportional"])
def test_hot_expert_load_falls_under_loss_free_bias(update: str) -> None:
    model = model_with_hot_expert({"kind": "loss_free_bias", "update_rate": 0.02, "update": update})
    (balancer,) = build_balancers(model.config.moe)
    tokens_BL = random_tokens(8, 16)
    assert share_of(model, tokens_BL, 3) == 4.0
    weights = [parameter.clone() for parameter in model.parameters()]
    for _ in range(80):
        with torch.no_grad():
            counts_LE = torch.stack([routing.counts_E for routing in model(tokens_BL).routings]).float()
        balancer.after_step(model, counts_LE)
    assert share_of(model, tokens_BL, 3) < 1.5
    assert all(torch.equal(old, new) for old, new in zip(weights, model.parameters(), strict=True))


def test_bias_moves_by_the_centred_sign() -> None:
    model = model_with_hot_expert({"kind": "loss_free_bias", "update_rate": 0.1})
    counts_LE = torch.tensor([[10.0, 10.0, 0.0, 50.0, 10.0, 10.0, 10.0, 20.0]])  # mean 15
    LossFreeBias(LossFreeBiasConfig(update_rate=0.1)).after_step(model, counts_LE)
    sign_E = torch.tensor([1.0, 1.0, 1.0, -1.0, 1.0, 1.0, 1.0, -1.0])
    (layer,) = model.moe_layers()
    torch.testing.assert_close(layer.selection_bias_E, 0.1 * (sign_E - 0.5))


def test_update_as_published_is_not_centred() -> None:
    model = model_with_hot_expert({"kind": "loss_free_bias", "update_rate": 0.1})
    counts_LE = torch.tensor([[10.0, 10.0, 0.0, 50.0, 10.0, 10.0, 10.0, 20.0]])  # mean 15
    LossFreeBias(LossFreeBiasConfig(update_rate=0.1, centred=False)).after_step(model, counts_LE)
    (layer,) = model.moe_layers()
    torch.testing.assert_close(layer.selection_bias_E, torch.tensor([0.1, 0.1, 0.1, -0.1, 0.1, 0.1, 0.1, -0.1]))


def test_biases_keep_their_sum() -> None:
    model = model_with_hot_expert({"kind": "loss_free_bias", "update_rate": 0.1})
    balancer = LossFreeBias(LossFreeBiasConfig(update_rate=0.1))
    for seed in range(50):
        balancer.after_step(model, random_rows(1, 8, seed=seed).square())
    (layer,) = model.moe_layers()
    assert layer.selection_bias_E.sum().abs() < 1e-5
    assert layer.selection_bias_E.abs().max() > 0.1


@pytest.mark.parametrize("update", ["sign", "proportional"])
def test_even_load_leaves_the_bias_alone(update: str) -> None:
    model = model_with_hot_expert({"kind": "loss_free_bias", "update_rate": 0.1})
    config = LossFreeBiasConfig.model_validate({"update_rate": 0.1, "update": update})
    LossFreeBias(config).after_step(model, torch.full((1, 8), 16.0))
    (layer,) = model.moe_layers()
    assert torch.equal(layer.selection_bias_E, torch.zeros(8))


def test_proportional_bias_moves_by_the_relative_violation_whatever_the_number_of_tokens() -> None:
    counts_LE = torch.tensor([[10.0, 10.0, 0.0, 50.0, 10.0, 10.0, 10.0, 20.0]])  # mean 15
    expected_E = 0.1 * (15.0 - counts_LE[0]) / 15.0
    for num_steps in (1, 1000):
        model = model_with_hot_expert({"kind": "loss_free_bias", "update_rate": 0.1})
        balancer = LossFreeBias(LossFreeBiasConfig(update_rate=0.1, update="proportional"))
        balancer.after_step(model, counts_LE * num_steps)
        (layer,) = model.moe_layers()
        torch.testing.assert_close(layer.selection_bias_E, expected_E)


def test_clamp_bounds_the_bias_and_lets_it_come_back() -> None:
    model = model_with_hot_expert({"kind": "loss_free_bias", "update_rate": 0.1})
    balancer = LossFreeBias(LossFreeBiasConfig(update_rate=0.1, clamp=0.25))
    counts_LE = torch.tensor([[4.0, 0.0, 4.0, 0.0, 4.0, 0.0, 4.0, 0.0]])
    (layer,) = model.moe_layers()
    for _ in range(6):
        balancer.after_step(model, counts_LE)
    assert layer.selection_bias_E.tolist() == [-0.25, 0.25] * 4
    balancer.after_step(model, counts_LE.flip(-1))
    torch.testing.assert_close(layer.selection_bias_E, torch.tensor([-0.15, 0.15] * 4))


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_distribution_is_what_the_probability_sums_are_of(score: str) -> None:
    routing = route(random_rows(20, 6) * 3, top_k=2, score=score, normalize=True)
    probs_TE = distribution(routing.logits_TE, routing.score)
    torch.testing.assert_close(probs_TE.sum(dim=0), routing.prob_sum_E)
    torch.testing.assert_close(probs_TE.sum(dim=1), torch.ones(20))


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_sequence_loss_is_the_published_formula(score: str) -> None:
    num_sequences, seq_len, num_experts, top_k = 3, 5, 6, 2
    logits_TE = random_rows(num_sequences * seq_len, num_experts)
    routing = LayerRouting.of(
        route(logits_TE, top_k=top_k, score=score, normalize=True), layer=0, num_sequences=num_sequences
    )
    losses = []
    for sequence in range(num_sequences):
        rows = logits_TE[sequence * seq_len : (sequence + 1) * seq_len]
        scores_LE = rows.softmax(-1) if score == "softmax" else rows.sigmoid()
        loss = 0.0
        for expert in range(num_experts):
            chosen = [expert in row.topk(top_k).indices.tolist() for row in rows]
            share = num_experts / (top_k * seq_len) * sum(chosen)
            loss += share * (scores_LE[:, expert] / scores_LE.sum(-1)).mean().item()
        losses.append(loss)
    assert sequence_balancing_loss(routing).item() == pytest.approx(sum(losses) / num_sequences, rel=1e-5)


def test_sequence_loss_sees_a_collapse_within_sequences_that_the_batch_hides() -> None:
    # Sequence b sends all its tokens to expert b: even over the batch, collapsed in each sequence.
    logits_TE = 40.0 * torch.eye(4).repeat_interleave(5, dim=0)
    routing = LayerRouting.of(route(logits_TE, top_k=1, normalize=True), layer=0, num_sequences=4)
    torch.testing.assert_close(sequence_balancing_loss(routing), torch.tensor(4.0))
    batch = load_balancing_loss(routing.counts_E, routing.prob_sum_E, num_tokens=routing.num_tokens)
    torch.testing.assert_close(batch, torch.tensor(1.0))


def test_sequence_loss_is_one_when_every_sequence_is_even() -> None:
    ring_EE = torch.stack([torch.linspace(3.0, 0.0, 6).roll(token) for token in range(6)])
    routing = LayerRouting.of(route(ring_EE.repeat(4, 1), top_k=2, normalize=True), layer=0, num_sequences=4)
    torch.testing.assert_close(sequence_balancing_loss(routing), torch.tensor(1.0))


def test_group_loss_is_the_published_formula() -> None:
    num_experts, num_groups, top_k, num_tokens = 6, 3, 2, 20
    logits_TE = random_rows(num_tokens, num_experts)
    routing = route(logits_TE, top_k=top_k, normalize=True)
    share_E = num_experts / (top_k * num_tokens) * routing.counts_E  # f_i
    mean_prob_E = logits_TE.softmax(-1).mean(dim=0)  # P_i
    expected = sum(share_E[first : first + 2].mean() * mean_prob_E[first : first + 2].sum() for first in (0, 2, 4))
    loss = group_balancing_loss(
        routing.counts_E, routing.prob_sum_E, num_groups=num_groups, num_tokens=routing.num_tokens
    )
    torch.testing.assert_close(loss, expected)


def test_group_loss_sees_groups_only() -> None:
    # Of each group of two, one expert has all the load: even between the groups.
    logits_TE = torch.full((8, 4), -40.0)
    logits_TE[:4, 0] = logits_TE[4:, 2] = 40.0
    even = route(logits_TE, top_k=1, normalize=True)
    loss = group_balancing_loss(even.counts_E, even.prob_sum_E, num_groups=2, num_tokens=8)
    torch.testing.assert_close(loss, torch.tensor(1.0))
    torch.testing.assert_close(loss_of(even), torch.tensor(2.0))
    logits_TE[:, :2] = 40.0  # all tokens to the first group
    collapsed = route(logits_TE, top_k=2, normalize=True)
    loss = group_balancing_loss(collapsed.counts_E, collapsed.prob_sum_E, num_groups=2, num_tokens=8)
    assert loss > 1.5


def test_groups_that_do_not_divide_the_experts_are_refused() -> None:
    balancing = [{"kind": "group_balancing_loss", "coefficient": 0.1, "num_groups": 3}]
    with pytest.raises(ValidationError, match=r"balancing\.0\.num_groups=3 does not divide num_experts=4"):
        model_config(moe=moe_fields(balancing=balancing))


def test_sequence_loss_gradient_does_not_depend_on_how_a_step_is_split() -> None:
    balancing = [{"kind": "sequence_balancing_loss", "coefficient": 1.0}]
    model = tiny_model(model_config(moe=moe_fields(balancing=balancing))).double()
    tokens_BL = random_tokens(4, 9)
    whole = gradients_of_step(model, [tokens_BL])
    for size in (1, 2):
        split = gradients_of_step(model, list(tokens_BL.split(size)))
        for name, gradient in whole.items():
            torch.testing.assert_close(split[name], gradient, rtol=0, atol=1e-11, msg=name)


@pytest.mark.parametrize(
    "balancing",
    [
        [],
        [{"kind": "router_z_loss", "coefficient": 0.1}],
        [{"kind": "load_balancing_loss", "coefficient": 0.1}, {"kind": "router_z_loss", "coefficient": 0.1}],
    ],
    ids=["none", "z", "load_and_z"],
)
def test_gradients_do_not_depend_on_the_split_when_the_statistics_agree(balancing: list[dict[str, object]]) -> None:
    model = tiny_model(model_config(moe=moe_fields(balancing=balancing))).double()
    half_BL = random_tokens(2, 9)
    whole = gradients_of_step(model, [torch.cat((half_BL, half_BL))])
    split = gradients_of_step(model, [half_BL, half_BL])
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, rtol=0, atol=1e-12, msg=name)


def test_z_loss_gradient_does_not_depend_on_any_split_but_the_load_balancing_loss_does() -> None:
    tokens_BL = random_tokens(4, 9)
    difference = {}
    for kind in ("router_z_loss", "load_balancing_loss"):
        model = tiny_model(model_config(moe=moe_fields(balancing=[{"kind": kind, "coefficient": 1.0}]))).double()
        whole = gradients_of_step(model, [tokens_BL])
        split = gradients_of_step(model, list(tokens_BL.split(2)))
        difference[kind] = max((whole[name] - split[name]).abs().max().item() for name in whole)
    assert difference["router_z_loss"] < 1e-11
    assert difference["load_balancing_loss"] > 1e-4  # the shares are those of a micro-batch, by definition


def test_dense_model_has_no_balancers() -> None:
    assert build_balancers(None) == ()


def test_balancers_come_in_the_order_of_the_config() -> None:
    config = model_config(
        moe=moe_fields(
            balancing=[
                {"kind": "router_z_loss", "coefficient": 0.1},
                {"kind": "loss_free_bias", "update_rate": 0.1},
                {"kind": "load_balancing_loss", "coefficient": 0.1},
            ]
        )
    )
    assert [type(balancer) for balancer in build_balancers(config.moe)] == [
        RouterZLoss,
        LossFreeBias,
        LoadBalancingLoss,
    ]


NULL_CASES = {
    "load_balancing_loss": {"coefficient": 1.0, "scope": "global_batch"},
    "sequence_balancing_loss": {"coefficient": 1.0},
    "quantile_balancing": {},
}


@pytest.mark.parametrize("kind", NULL_CASES)
def test_null_experts_count_as_experts_and_get_their_share(kind: str) -> None:
    """Eight experts and eight null ones: half of the pairs come to go to no expert, and the hot one has its share."""
    model = model_with_hot_expert({"kind": kind} | NULL_CASES[kind], num_null_experts=8)
    tokens_BL = random_tokens(8, 16)
    assert served_fraction(model, tokens_BL) > 0.6
    routers = [layer.router.weight for layer in model.moe_layers()]
    optimizer = torch.optim.Adam(routers, lr=0.05)
    (balancer,) = build_balancers(model.config.moe)
    for _ in range(80):
        optimizer.zero_grad()
        loss = balancer.loss(model(tokens_BL).routings)
        if loss is None:
            balance(model, [tokens_BL])
        else:
            loss.backward()
            optimizer.step()
    assert served_fraction(model, tokens_BL) == pytest.approx(0.5, abs=0.1)
    assert share_of(model, tokens_BL, 3) < 1.6


def test_loss_free_bias_moves_each_null_expert_against_its_own_demand() -> None:
    method = {"kind": "loss_free_bias", "update_rate": 0.1, "centred": False}
    model = tiny_model(model_config(num_layers=1, moe=moe_fields(num_null_experts=3, balancing=[method])))
    tokens_BL = random_tokens(8, 16)
    demand_E = model(tokens_BL).routings[0].assignments_TE().sum(dim=0)
    mean = 8 * 16 * 2 / 7
    assert (demand_E[4:] < mean).any()
    assert (demand_E[4:] > mean).any()
    balance(model, tokens_BL.split(2))
    (layer,) = model.moe_layers()
    torch.testing.assert_close(layer.selection_bias_E, 0.1 * (mean - demand_E).sign())


def served_fraction(model: Transformer, tokens_BL: Tensor) -> float:
    """Returns the fraction of the first layer's pairs that an expert computes."""
    routing = model(tokens_BL).routings[0]
    return routing.counts_E.sum().item() / routing.expert_ids_N.numel()


def test_demand_of_null_experts_is_their_mean() -> None:
    model = tiny_model(model_config(moe=moe_fields(num_null_experts=3)))
    routings = model(random_tokens(4, 16)).routings
    demand_LE = demand(routings)
    assert demand_LE.shape == (2, 7)
    assert demand_LE.sum(dim=1).tolist() == [4 * 16 * 2] * 2
    for routing, demand_E in zip(routings, demand_LE, strict=True):
        assert demand_E[:4].tolist() == routing.stats.counts_E.tolist()
        assert (demand_E[4:] == demand_E[4]).all()
