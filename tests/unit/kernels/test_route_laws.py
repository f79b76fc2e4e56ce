"""Laws of routing that hold for every input."""

import math
from typing import NamedTuple

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import STAT_NAMES, STAT_SLOTS, RouterStats, Routing, route
from kernels.route import Score
from tests.support.routing import random_bias, random_logits

# Enough to meet every combination of score, bias, normalisation and spread several times.
law = settings(max_examples=60)


class Drawn(NamedTuple):
    """One drawn call of `route`."""

    logits_TE: torch.Tensor
    top_k: int
    score: Score
    normalize: bool
    scale: float
    bias_E: torch.Tensor | None

    def route(self, logits_TE: torch.Tensor) -> Routing:
        return route(
            logits_TE,
            top_k=self.top_k,
            score=self.score,
            normalize=self.normalize,
            scale=self.scale,
            selection_bias_E=self.bias_E,
            backend="torch",
        )


@st.composite
def drawn_calls(draw: st.DrawFn) -> Drawn:
    num_tokens, num_experts = draw(st.integers(1, 40)), draw(st.integers(1, 20))
    seed = draw(st.integers(0, 2**31))
    spread = draw(st.sampled_from([0.0, 0.1, 1.0, 10.0]))  # 0: every expert ties with every other
    return Drawn(
        logits_TE=random_logits(num_tokens, num_experts, seed=seed, spread=spread),
        top_k=draw(st.integers(1, num_experts)),
        score=draw(st.sampled_from(["softmax", "sigmoid"])),
        normalize=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 2.446])),
        bias_E=random_bias(num_experts, seed=seed) if draw(st.booleans()) else None,
    )


@law
@given(call=drawn_calls())
def test_every_pair_has_one_place(call: Drawn) -> None:
    routing = call.route(call.logits_TE)
    num_pairs = call.logits_TE.shape[0] * call.top_k
    pairs_N = torch.arange(num_pairs)
    assert routing.counts_E.sum().item() == num_pairs
    assert torch.equal(routing.offsets_E, routing.counts_E.cumsum(0).int())
    assert torch.equal(routing.permutation_N[routing.inverse_N], pairs_N)
    assert torch.equal(routing.inverse_N[routing.permutation_N], pairs_N)
    # Stable by expert: the key (expert, pair) rises strictly along the expert order.
    key_N = routing.expert_ids_TK.flatten()[routing.permutation_N] * num_pairs + routing.permutation_N
    assert bool((key_N[1:] > key_N[:-1]).all())


@law
@given(call=drawn_calls())
def test_a_token_never_has_an_expert_twice(call: Drawn) -> None:
    sorted_ids_TK = call.route(call.logits_TE).expert_ids_TK.sort(dim=-1).values
    assert bool((sorted_ids_TK[:, 1:] != sorted_ids_TK[:, :-1]).all())


@law
@given(call=drawn_calls())
def test_refused_experts_never_beat_chosen_ones(call: Drawn) -> None:
    routing = call.route(call.logits_TE)
    scores_TE = call.logits_TE.softmax(-1) if call.score == "softmax" else call.logits_TE.sigmoid()
    value_TE = call.logits_TE if call.bias_E is None else scores_TE + call.bias_E
    chosen_TE = torch.zeros_like(value_TE, dtype=torch.bool).scatter(1, routing.expert_ids_TK, value=True)
    worst_chosen_T = value_TE.masked_fill(~chosen_TE, math.inf).amin(dim=-1)
    best_refused_T = value_TE.masked_fill(chosen_TE, -math.inf).amax(dim=-1)
    assert bool((worst_chosen_T >= best_refused_T - 1e-6).all())  # scores here and there differ by rounding


@law
@given(call=drawn_calls(), seed=st.integers(0, 1000))
def test_permuting_tokens_permutes_the_routing(call: Drawn, seed: int) -> None:
    shuffle_T = torch.randperm(call.logits_TE.shape[0], generator=torch.Generator().manual_seed(seed))
    before, after = call.route(call.logits_TE), call.route(call.logits_TE[shuffle_T])
    assert torch.equal(after.expert_ids_TK, before.expert_ids_TK[shuffle_T])
    assert torch.equal(after.counts_E, before.counts_E)
    torch.testing.assert_close(after.weights_TK, before.weights_TK[shuffle_T])
    torch.testing.assert_close(after.prob_sum_E, before.prob_sum_E)


@law
@given(call=drawn_calls())
def test_statistics_equal_those_of_the_dense_distribution(call: Drawn) -> None:
    routing = call.route(call.logits_TE)
    z_TE = call.logits_TE.double()
    scores_TE = z_TE.softmax(-1) if call.score == "softmax" else z_TE.sigmoid()
    p_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
    entropy_T = torch.special.entr(p_TE).sum(-1)
    selection_TE = scores_TE if call.bias_E is None else scores_TE + call.bias_E.double()
    ranked_TE = selection_TE.sort(dim=-1, descending=True).values
    gap = 0.0 if call.top_k == z_TE.shape[1] else (ranked_TE[:, call.top_k - 1] - ranked_TE[:, call.top_k]).sum()
    expected = {
        "num_tokens": z_TE.shape[0],
        "token_entropy_sum": entropy_T.sum(),
        "token_entropy_sq_sum": entropy_T.square().sum(),
        "logsumexp_sum": z_TE.logsumexp(-1).sum(),
        "logsumexp_sq_sum": z_TE.logsumexp(-1).square().sum(),
        "top_k_mass_sum": p_TE.gather(1, routing.expert_ids_TK).sum(),
        "margin_sum": gap,
        "logit_sq_sum": z_TE.square().sum(),
        "logit_max": z_TE.max(),
        "negated_logit_max": -z_TE.min(),
    }
    expected_S = torch.tensor([float(expected[name]) for name in STAT_NAMES], dtype=torch.float64)
    torch.testing.assert_close(routing.stats.stats_S, expected_S, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(routing.stats.prob_sum_E, p_TE.sum(0).float(), rtol=1e-4, atol=1e-5)
    gate_mass_E = torch.zeros(z_TE.shape[1]).index_add(0, routing.expert_ids_TK.flatten(), routing.weights_TK.flatten())
    torch.testing.assert_close(routing.stats.gate_mass_E, gate_mass_E, rtol=1e-4, atol=1e-5)


@law
@given(call=drawn_calls(), data=st.data())
def test_statistics_of_parts_combine_to_those_of_the_whole(call: Drawn, data: st.DataObject) -> None:
    num_tokens, num_experts = call.logits_TE.shape
    cut = data.draw(st.integers(0, num_tokens))
    total = RouterStats.identity(num_experts)
    for part_TE in (call.logits_TE[:cut], call.logits_TE[cut:]):
        if part_TE.shape[0]:
            total = total.combine(call.route(part_TE).stats)
    whole = call.route(call.logits_TE).stats
    assert torch.equal(total.counts_E, whole.counts_E)
    for got, want in zip(total, whole, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@law
@given(call=drawn_calls(), shift=st.floats(-20, 20))
def test_softmax_routing_ignores_a_common_shift(call: Drawn, shift: float) -> None:
    # In float64, which only the reference takes, adding the shift neither makes nor breaks a tie in these examples.
    z_TE = call.logits_TE[:8].double()
    before, after = (
        route(value_TE, top_k=call.top_k, normalize=call.normalize, scale=call.scale, backend="reference")
        for value_TE in (z_TE, z_TE + shift)
    )
    torch.testing.assert_close(after.weights_TK, before.weights_TK)
    torch.testing.assert_close(after.prob_sum_E, before.prob_sum_E)


def test_slots_are_named_once_and_sums_come_first() -> None:
    assert len(set(STAT_NAMES)) == len(STAT_NAMES)
    reductions = [slot.reduction for slot in STAT_SLOTS]
    assert reductions == sorted(reductions, key=["sum", "max"].index)
