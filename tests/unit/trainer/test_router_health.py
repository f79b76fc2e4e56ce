"""Router metrics have the values at their bounds that theory gives, and the laws that counting gives."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from trainer.metrics.catalog import ROUTER_SCALARS
from trainer.metrics.history import RunHistory
from trainer.metrics.router_health import (
    RouterSums,
    average_violation,
    dead_fraction,
    drop_rate,
    entropy,
    experts_per_token,
    experts_per_token_std,
    load_cv,
    load_entropy,
    max_load,
    max_violation,
    min_violation,
    null_share,
    router_health,
)

COUNTS = st.lists(st.integers(0, 1000), min_size=2, max_size=16).filter(lambda counts: sum(counts) > 0)


def collapse(num_experts: int, top_k: int) -> np.ndarray:
    """Every token goes to the same `top_k` experts."""
    return np.array([100] * top_k + [0] * (num_experts - top_k))


def sums(counts_E: np.ndarray, *, top_k: int, probs_TE: np.ndarray, logits_TE: np.ndarray) -> RouterSums:
    top_TK = np.sort(probs_TE, axis=1)[:, ::-1]
    return RouterSums(
        counts_E=counts_E,
        prob_sum_E=probs_TE.sum(axis=0),
        entropy_sum=entropy(probs_TE).sum(),
        entropy_sq_sum=(entropy(probs_TE) ** 2).sum(),
        logsumexp_sum=np.log(np.exp(logits_TE).sum(axis=1)).sum(),
        z_sum=(np.log(np.exp(logits_TE).sum(axis=1)) ** 2).sum(),
        top_k_mass_sum=top_TK[:, :top_k].sum(),
        margin_sum=(top_TK[:, top_k - 1] - top_TK[:, top_k]).sum(),
        logit_sq_sum=(logits_TE**2).sum(),
        micro_max_violation=np.float64(0.0),
        max_logit=logits_TE.max(),
        negated_min_logit=-logits_TE.min(),
        bias_range=np.float64(0.25),
        num_tokens=len(probs_TE),
        num_dropped=np.float64(0.0),
        num_null=np.float64(0.0),
        num_uncovered=np.float64(0.0),
        experts_sq_sum=np.float64(0.0),
    )


def test_rates_of_what_experts_do_not_compute():
    counts_LE = np.array([[6, 2], [0, 0]])
    assert_allclose(drop_rate(np.array([3.0, 0.0]), counts_LE), [3 / 8, 0.0])
    assert_allclose(null_share(np.array([2.0, 10.0]), counts_LE), [2 / 10, 1.0])


def test_experts_per_token_of_three_tokens_with_none_one_and_five():
    mean = experts_per_token(np.float64(2.0), np.array([5, 3]), 3)
    assert_allclose(mean, 2.0)  # 8 pairs, 2 of them dropped
    assert_allclose(experts_per_token_std(np.float64(0 + 1 + 25), mean, 3), np.std([0, 1, 5]))
    assert experts_per_token_std(np.float64(0.0), np.float64(2.0), 3) == 0.0  # all have two


def test_a_layer_whose_tokens_all_went_to_null_experts_has_finite_health():
    probs_TE = np.full((10, 4), 0.25)
    health = router_health(
        sums(np.zeros(4, dtype=np.int64), top_k=1, probs_TE=probs_TE, logits_TE=np.zeros((10, 4)))._replace(
            num_null=np.float64(10.0), num_uncovered=np.float64(10.0)
        )
    )
    assert all(np.isfinite(value) for value in health.values())
    assert health["router/null_share"] == health["router/uncovered_rate"] == health["router/dead_fraction"] == 1.0
    assert health["router/max_violation"] == health["router/load_entropy"] == health["router/max_load"] == 0.0
    assert health["router/min_violation"] == health["router/average_violation"] == 0.0


def test_even_load_has_no_violation_and_full_entropy():
    counts_E = np.full(64, 30)
    assert max_violation(counts_E) == min_violation(counts_E) == average_violation(counts_E) == 0
    assert load_cv(counts_E) == 0
    assert dead_fraction(counts_E) == 0
    assert_allclose(load_entropy(counts_E), math.log(64), rtol=1e-12)
    assert_allclose(max_load(counts_E), 1 / 64, rtol=1e-12)


@pytest.mark.parametrize(("num_experts", "top_k"), [(64, 6), (4096, 7), (16, 2)])
def test_total_collapse_reaches_every_bound(num_experts: int, top_k: int):
    counts_E = collapse(num_experts, top_k)
    assert_allclose(max_violation(counts_E), num_experts / top_k - 1, rtol=1e-12)
    assert_allclose(min_violation(counts_E), 1.0, rtol=1e-12)
    assert_allclose(average_violation(counts_E), 2 - 2 * top_k / num_experts, rtol=1e-12)
    assert_allclose(load_cv(counts_E), math.sqrt(num_experts / top_k - 1), rtol=1e-12)
    assert_allclose(max_load(counts_E), 1 / top_k, rtol=1e-12)
    assert_allclose(load_entropy(counts_E), math.log(top_k), rtol=1e-12)
    assert_allclose(dead_fraction(counts_E), 1 - top_k / num_experts, rtol=1e-12)


def test_worked_example_of_four_experts():
    # mean 2.5; deviations 1.5, .5, .5, 1.5, so the variance is (2.25 + .25 + .25 + 2.25) / 4 = 1.25
    counts_E = np.array([4, 3, 2, 1])
    assert_allclose(max_violation(counts_E), 4 / 2.5 - 1)
    assert_allclose(min_violation(counts_E), 1 - 1 / 2.5)
    assert_allclose(average_violation(counts_E), (1.5 + 0.5 + 0.5 + 1.5) / 4 / 2.5)
    assert_allclose(load_cv(counts_E), math.sqrt(1.25) / 2.5)
    assert_allclose(max_load(counts_E), 0.4)
    assert_allclose(load_entropy(counts_E), -sum(f * math.log(f) for f in (0.4, 0.3, 0.2, 0.1)))


@given(COUNTS, st.randoms(use_true_random=False))
def test_no_metric_depends_on_the_numbering_of_experts(counts: list[int], random):
    shuffled = list(counts)
    random.shuffle(shuffled)
    for metric in (max_violation, min_violation, average_violation, load_cv, load_entropy, max_load, dead_fraction):
        assert_allclose(metric(np.array(shuffled)), metric(np.array(counts)), rtol=1e-12, atol=1e-12)


@given(COUNTS)
def test_violation_and_largest_load_are_one_fact(counts: list[int]):
    counts_E = np.array(counts)
    assert_allclose(max_violation(counts_E), len(counts) * max_load(counts_E) - 1, rtol=1e-9, atol=1e-9)


@given(COUNTS, st.integers(2, 50))
def test_ratios_do_not_depend_on_the_number_of_tokens(counts: list[int], factor: int):
    counts_E = np.array(counts)
    for metric in (max_violation, min_violation, average_violation, load_cv, load_entropy, max_load, dead_fraction):
        assert_allclose(metric(counts_E * factor), metric(counts_E), rtol=1e-12, atol=1e-12)


def test_leading_axes_are_kept_and_rows_are_independent():
    counts_SLE = np.random.default_rng(0).integers(1, 50, size=(3, 2, 8))
    violations_SL = max_violation(counts_SLE)
    assert violations_SL.shape == (3, 2)
    assert violations_SL[2, 1] == max_violation(counts_SLE[2, 1])


def test_every_router_metric_of_the_catalogue_is_computed():
    probs_TE = np.full((10, 4), 0.25)
    health = router_health(sums(np.full(4, 5), top_k=2, probs_TE=probs_TE, logits_TE=np.zeros((10, 4))))
    history = RunHistory(num_layers=1, num_experts=4).loads(np.full((1, 1, 4), 5))
    of_gradients = {"router/grad_norm", "router/expert_grad_norm"}
    assert health.keys() | history.keys() | of_gradients == set(ROUTER_SCALARS)


def test_undecided_router_has_full_token_entropy_and_no_information():
    probs_TE = np.full((10, 4), 0.25)
    health = router_health(sums(np.full(4, 5), top_k=2, probs_TE=probs_TE, logits_TE=np.zeros((10, 4))))
    assert_allclose(health["router/token_entropy"], math.log(4))
    assert_allclose(health["router/mutual_information"], 0, atol=1e-12)
    assert_allclose(health["router/top_k_mass"], 0.5)
    assert_allclose(health["router/margin"], 0, atol=1e-12)
    assert_allclose(health["router/z"], math.log(4) ** 2)
    assert_allclose(health["router/logsumexp"], math.log(4))
    assert_allclose(health["router/importance_entropy"], math.log(4))
    assert_allclose(health["router/effective_experts"], 4)
    assert_allclose(health["router/token_entropy_std"], 0, atol=1e-6)
    assert health["router/logit_rms"] == health["router/max_abs_logit"] == 0
    assert_allclose(health["router/load_balancing_loss"], 1)
    assert health["router/mean_load"] == 5
    assert health["router/bias_range"] == 0.25


def test_decided_and_balanced_router_has_full_information_and_no_token_entropy():
    probs_TE = np.eye(4)[np.arange(12) % 4]
    health = router_health(sums(np.full(4, 3), top_k=1, probs_TE=probs_TE, logits_TE=10 * probs_TE))
    assert_allclose(health["router/token_entropy"], 0, atol=1e-12)
    assert_allclose(health["router/mutual_information"], math.log(4))
    assert_allclose(health["router/margin"], 1)
    assert health["router/max_logit"] == health["router/max_abs_logit"] == 10
    assert_allclose(health["router/load_balancing_loss"], 1)


def test_decided_router_on_one_expert_has_neither():
    probs_TE = np.eye(4)[np.zeros(12, dtype=int)]
    logits_TE = 10 * probs_TE - 15
    health = router_health(sums(np.array([12, 0, 0, 0]), top_k=1, probs_TE=probs_TE, logits_TE=logits_TE))
    assert (health["router/max_logit"], health["router/max_abs_logit"]) == (-5, 15)
    assert_allclose(health["router/load_balancing_loss"], 4)  # E / K
    assert_allclose(health["router/mutual_information"], 0, atol=1e-12)
    assert_allclose(health["router/load_entropy"], 0, atol=1e-12)
    assert_allclose(health["router/importance_entropy"], 0, atol=1e-12)
    assert_allclose(health["router/effective_experts"], 1)
    assert_allclose(health["router/logit_rms"], math.sqrt((5**2 + 3 * 15**2) / 4))
