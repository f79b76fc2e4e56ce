"""Router health: every `router/` metric of the catalogue from the counts and sums of one whole optimizer step.

Counts must be those of the step, summed over micro-batches and workers, before any ratio is taken: the ratio of a sum
is not the mean of ratios, and a mean over micro-batches understates nothing but overstates imbalance.

Letters: `E` experts. Leading axes (steps, layers) are arbitrary and kept.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class RouterSums(NamedTuple):
    """What the routing passes of one step add up to, per leading index.

    Attributes:
        counts_E: int64 [..., E], tokens that chose each expert (or that it chose), before any is dropped.
        prob_sum_E: float64 [..., E], sum over tokens of the router's distribution; null experts after the others.
        entropy_sum, entropy_sq_sum, logsumexp_sum, z_sum, top_k_mass_sum, margin_sum: float64 [...], sums over tokens.
        logit_sq_sum: float64 [...], sum over tokens and the router's outputs.
        micro_max_violation: float64 [...], mean over micro-batches and workers of the MaxVio of each.
        max_logit, negated_min_logit: float64 [...], the largest router logit, and minus the smallest.
        bias_range: float64 [...], largest minus smallest selection bias; 0 without one.
        num_tokens: tokens of the step.
        num_dropped, num_null: float64 [...], pairs beyond an expert's capacity, and pairs sent to null experts.
        num_uncovered: float64 [...], tokens that no expert computed.
        experts_sq_sum: float64 [...], sum over tokens of the squared number of experts that computed them; 0 where
            all tokens have equally many.
    """

    counts_E: NDArray[np.int64]
    prob_sum_E: Floats
    entropy_sum: Floats
    entropy_sq_sum: Floats
    logsumexp_sum: Floats
    z_sum: Floats
    top_k_mass_sum: Floats
    margin_sum: Floats
    logit_sq_sum: Floats
    micro_max_violation: Floats
    max_logit: Floats
    negated_min_logit: Floats
    bias_range: Floats
    num_tokens: int
    num_dropped: Floats
    num_null: Floats
    num_uncovered: Floats
    experts_sq_sum: Floats


def load_fractions(counts_E: NDArray[np.int64]) -> Floats:
    """Return f_e = n_e / sum n, float64 [..., E]; zeros where null experts took every token."""
    return counts_E / np.maximum(counts_E.sum(axis=-1, keepdims=True), 1)


def entropy(fractions_E: Floats) -> Floats:
    """Return -sum_e f_e ln f_e in nats over the last axis, with 0 ln 0 = 0."""
    positive = fractions_E > 0
    terms_E = np.where(positive, fractions_E * np.log(np.where(positive, fractions_E, 1.0)), 0.0)
    return 0.0 - terms_E.sum(axis=-1)  # a mere minus would make -0.0 of total collapse


def load_entropy(counts_E: NDArray[np.int64]) -> Floats:
    """Return the entropy of the load fractions in nats: ln E when even, ln K in total collapse."""
    return entropy(load_fractions(counts_E))


def max_violation(counts_E: NDArray[np.int64]) -> Floats:
    """Return MaxVio, max_e n_e / mean n - 1; 0 without any load. Source: Wang et al. 2024, arXiv:2408.15664, eq. 4."""
    return np.where(counts_E.any(axis=-1), counts_E.max(axis=-1) / _mean_load(counts_E) - 1.0, 0.0)


def min_violation(counts_E: NDArray[np.int64]) -> Floats:
    """Return MinVio, 1 - min_e n_e / mean n; 0 without any load."""
    return np.where(counts_E.any(axis=-1), 1.0 - counts_E.min(axis=-1) / _mean_load(counts_E), 0.0)


def average_violation(counts_E: NDArray[np.int64]) -> Floats:
    """Return AvgVio, the mean over experts of |n_e - mean n| / mean n; 0 without any load."""
    distances_E = np.abs(counts_E - counts_E.mean(axis=-1, keepdims=True))
    return distances_E.mean(axis=-1) / _mean_load(counts_E)


def load_cv(counts_E: NDArray[np.int64]) -> Floats:
    """Return the population standard deviation of the loads over their mean."""
    return counts_E.std(axis=-1) / _mean_load(counts_E)


def max_load(counts_E: NDArray[np.int64]) -> Floats:
    """Return the busiest expert's load fraction; 1 / K is total collapse."""
    return load_fractions(counts_E).max(axis=-1)


def dead_fraction(counts_E: NDArray[np.int64]) -> Floats:
    """Return the fraction of experts no token chose."""
    return (counts_E == 0).mean(axis=-1)


def drop_rate(num_dropped: Floats, counts_E: NDArray[np.int64]) -> Floats:
    """Return the share of the pairs with (not null) experts that their capacity did not let in."""
    return num_dropped / np.maximum(counts_E.sum(axis=-1), 1)


def null_share(num_null: Floats, counts_E: NDArray[np.int64]) -> Floats:
    """Return the share of all pairs that went to null experts."""
    return num_null / (num_null + counts_E.sum(axis=-1))


def experts_per_token(num_dropped: Floats, counts_E: NDArray[np.int64], num_tokens: int) -> Floats:
    """Return the mean number of experts that compute a token, null experts not among them."""
    return (counts_E.sum(axis=-1) - num_dropped) / num_tokens


def experts_per_token_std(experts_sq_sum: Floats, mean: Floats, num_tokens: int) -> Floats:
    """Return the population standard deviation over tokens of their number of experts, whose mean is `mean`."""
    variance = np.where(experts_sq_sum > 0, experts_sq_sum / num_tokens - mean**2, 0.0)
    return np.sqrt(np.maximum(variance, 0.0))  # rounding may undercut 0


def deviation(square_sum: Floats, mean: Floats, num_tokens: int) -> Floats:
    """Return the population standard deviation over tokens of what has this sum of squares and this mean."""
    return np.sqrt(np.maximum(square_sum / num_tokens - mean**2, 0.0))  # rounding may undercut 0


def load_balancing_loss(counts_E: NDArray[np.int64], prob_sum_E: Floats, num_tokens: int) -> Floats:
    """Return E * sum_e f_e * P_e: 1 at balance, E / K when all tokens choose the same K experts with certainty.

    Null experts, which come after the E others in `prob_sum_E`, take no part. Source: Fedus et al. 2021,
    arXiv:2101.03961, eq. 4-6; ours counts all K choices, over all of their number.
    """
    num_experts = counts_E.shape[-1]
    shares_E = prob_sum_E[..., :num_experts] / num_tokens
    return num_experts * (load_fractions(counts_E) * shares_E).sum(axis=-1)


def _mean_load(counts_E: NDArray[np.int64]) -> Floats:
    """Return the mean load, 1 token per layer where there is none at all: null experts can take every token."""
    return np.maximum(counts_E.sum(axis=-1), 1) / counts_E.shape[-1]


def router_health(sums: RouterSums) -> dict[str, Floats]:
    """Return the metrics of `catalog.ROUTER_SCALARS` that a step's routing gives, name -> float64 [...].

    All but those of gradients, and those of `trainer.metrics.history`, which take the steps before.
    """
    token_entropy = sums.entropy_sum / sums.num_tokens
    num_experts = experts_per_token(sums.num_dropped, sums.counts_E, sums.num_tokens)
    mean_entropy = entropy(sums.prob_sum_E / sums.prob_sum_E.sum(axis=-1, keepdims=True))
    return {
        "router/token_entropy": token_entropy,
        "router/token_entropy_std": deviation(sums.entropy_sq_sum, token_entropy, sums.num_tokens),
        "router/load_entropy": load_entropy(sums.counts_E),
        "router/effective_experts": np.exp(load_entropy(sums.counts_E)),
        "router/importance_entropy": mean_entropy,
        # H(mean p) >= mean H(p) by concavity; rounding may undercut that by an ulp.
        "router/mutual_information": np.maximum(mean_entropy - token_entropy, 0.0),
        "router/max_violation": max_violation(sums.counts_E),
        "router/micro_max_violation": sums.micro_max_violation,
        "router/min_violation": min_violation(sums.counts_E),
        "router/average_violation": average_violation(sums.counts_E),
        "router/load_cv": load_cv(sums.counts_E),
        "router/max_load": max_load(sums.counts_E),
        "router/dead_fraction": dead_fraction(sums.counts_E),
        "router/drop_rate": drop_rate(sums.num_dropped, sums.counts_E),
        "router/uncovered_rate": sums.num_uncovered / sums.num_tokens,
        "router/null_share": null_share(sums.num_null, sums.counts_E),
        "router/experts_per_token": num_experts,
        "router/experts_per_token_std": experts_per_token_std(sums.experts_sq_sum, num_experts, sums.num_tokens),
        "router/z": sums.z_sum / sums.num_tokens,
        "router/logsumexp": sums.logsumexp_sum / sums.num_tokens,
        "router/top_k_mass": sums.top_k_mass_sum / sums.num_tokens,
        "router/margin": sums.margin_sum / sums.num_tokens,
        "router/max_logit": sums.max_logit,
        "router/max_abs_logit": np.maximum(sums.max_logit, sums.negated_min_logit),
        "router/logit_rms": np.sqrt(sums.logit_sq_sum / (sums.num_tokens * sums.prob_sum_E.shape[-1])),
        "router/bias_range": sums.bias_range,
        "router/mean_load": sums.counts_E.mean(axis=-1),
        "router/load_balancing_loss": load_balancing_loss(sums.counts_E, sums.prob_sum_E, sums.num_tokens),
    }
