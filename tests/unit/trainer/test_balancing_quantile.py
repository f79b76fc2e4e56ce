"""Quantile balancing: the quantile of a histogram, and biases that give every expert its share."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kernels import route
from tests.support.balancing import balance, model_with_hot_expert
from tests.support.models import model_config, moe_fields, random_rows, random_tokens, tiny_model
from trainer.balancing.build import build_balancers
from trainer.balancing.quantile_balancing import margin_histogram, margin_quantile, margins
from trainer.model.routing import LayerRouting
from trainer.model.transformer import Transformer

ONE = torch.tensor(1.0)


def largest_over_mean_load(model: Transformer, num_sequences: int) -> float:
    with torch.no_grad():
        routings = model(random_tokens(num_sequences, 32)).routings
    return max((routing.counts_E.max() / routing.counts_E.float().mean()).item() for routing in routings)


@given(seed=st.integers(0, 1000), num_tokens=st.integers(50, 400), share=st.floats(0.05, 0.95))
def test_quantile_has_the_share_of_the_margins_below_it(seed: int, num_tokens: int, share: float) -> None:
    margins_TE = random_rows(num_tokens, 3, seed=seed).tanh() * 0.3
    histogram_EH = margin_histogram(margins_TE, largest=ONE, num_bins=4096)
    assert histogram_EH.sum(dim=1).tolist() == [num_tokens] * 3
    quantile_E = margin_quantile(histogram_EH, share=share, largest=ONE)
    below_E = (margins_TE < quantile_E).sum(dim=0)
    # A bin is 0.4 % of its margin wide and holds a token or two.
    assert (below_E - share * num_tokens).abs().max() <= 4


def test_quantile_of_few_bins_is_near_that_of_the_margins() -> None:
    margins_TE = random_rows(4000, 2).tanh()
    histogram_EH = margin_histogram(margins_TE, largest=ONE, num_bins=1024)
    for share in (0.1, 0.5, 0.9):
        quantile_E = margin_quantile(histogram_EH, share=share, largest=ONE)
        expected_E = margins_TE.quantile(share, dim=0)
        torch.testing.assert_close(quantile_E, expected_E, rtol=0.02, atol=0.002)


def test_where_an_interval_has_the_share_below_it_the_quantile_is_its_value_nearest_to_0() -> None:
    for below, above, nearest in ((-0.5, 0.5, 0.0), (0.25, 0.75, 0.25), (-0.75, -0.25, -0.25)):
        margins_TE = torch.tensor([[below], [below], [above], [above]])
        histogram_EH = margin_histogram(margins_TE, largest=ONE, num_bins=1024)
        quantile_E = margin_quantile(histogram_EH, share=0.5, largest=ONE)
        torch.testing.assert_close(quantile_E, torch.tensor([nearest]), rtol=0.02, atol=1e-6)


def test_extreme_margins_stay_in_the_histogram() -> None:
    histogram_EH = margin_histogram(torch.tensor([[-1.0], [1.0], [-1.0001], [1.0001]]), largest=ONE, num_bins=16)
    assert histogram_EH.tolist() == [[2] + [0] * 14 + [2]]


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_margins_are_negative_for_the_chosen_and_0_for_the_first_refused(score: str) -> None:
    bias_E = random_rows(6, seed=1) * 0.2
    routing = LayerRouting.of(
        route(random_rows(20, 6), top_k=2, score=score, normalize=True, selection_bias_E=bias_E), layer=0
    )
    margins_TE = margins(routing, bias_E)
    chosen_TE = torch.zeros(20, 6, dtype=torch.bool).scatter_(1, routing.expert_ids_N.view(20, 2), True)
    assert torch.equal(margins_TE < 0, chosen_TE)
    assert (margins_TE == 0).sum(dim=1).tolist() == [1] * 20


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_a_few_steps_even_the_load_of_many_experts(score: str) -> None:
    """64 experts, 4 per token: softmax scores of about 1/64, which bins of equal width would not tell apart."""
    fields = moe_fields(num_experts=64, top_k=4, router={"score": score}, balancing=[{"kind": "quantile_balancing"}])
    model = tiny_model(model_config(moe=fields), spread=8.0)
    assert largest_over_mean_load(model, 64) > 3.0
    for _ in range(5):
        balance(model, random_tokens(64, 32).split(16))
    assert largest_over_mean_load(model, 64) < 1.15


def test_even_load_leaves_the_biases_alone() -> None:
    model = model_with_hot_expert({"kind": "quantile_balancing"})
    (layer,) = model.moe_layers()
    ring_EE = torch.stack([torch.linspace(3.0, 0.0, 8).roll(token) for token in range(8)])
    routing = LayerRouting.of(route(ring_EE, top_k=2, normalize=True), layer=0)
    (balancer,) = build_balancers(model.config.moe)
    balancer.after_step(model, routing.counts_E[None].float(), observed=balancer.observe(model, [routing]))
    assert layer.selection_bias_E.abs().max() < 1e-6


def test_smoothing_keeps_its_share_of_the_old_bias() -> None:
    tokens_BL = random_tokens(8, 16)
    biases = {}
    for smoothing in (0.0, 0.75):
        model = model_with_hot_expert({"kind": "quantile_balancing", "smoothing": smoothing})
        balance(model, [tokens_BL])
        biases[smoothing] = model.moe_layers()[0].selection_bias_E
    torch.testing.assert_close(biases[0.75], 0.25 * biases[0.0])


def test_biases_have_mean_0() -> None:
    model = model_with_hot_expert({"kind": "quantile_balancing"})
    for seed in range(4):
        balance(model, [random_tokens(8, 16, seed=seed)])
    (layer,) = model.moe_layers()
    assert layer.selection_bias_E.mean().abs() < 1e-6
    assert layer.selection_bias_E[3] == layer.selection_bias_E.min()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"top_k": 4}, "quantile_balancing at top_k=num_experts=4"),
        (
            {"balancing": [{"kind": "quantile_balancing"}, {"kind": "loss_free_bias", "update_rate": 0.1}]},
            "which set the same bias",
        ),
        (
            {"router": {"kind": "sinkhorn"}},
            r"balancing\.0\.kind=quantile_balancing cannot act on router\.kind=sinkhorn",
        ),
        (
            {"router": {"kind": "group_limited", "num_groups": 2, "groups_per_token": 1}},
            r"balancing\.0\.kind=quantile_balancing cannot act on router\.kind=group_limited",
        ),
    ],
)
def test_what_it_cannot_balance_is_refused(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        model_config(moe=moe_fields(**({"balancing": [{"kind": "quantile_balancing"}]} | fields)))
