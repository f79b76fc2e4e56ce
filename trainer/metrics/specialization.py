"""Domain specialisation: how much the chosen expert tells about the domain of a token, in bits, beside its controls.

The plug-in estimate of mutual information is biased upwards on finite samples, and the tokens of one window resemble
each other, so the figure means little alone. Two controls go with it: `shuffled`, the same router with the domain
labels permuted over whole windows (not over tokens: windows are what is exchangeable under "the domain does not
matter", and permuting tokens would break up the likeness inside a window and understate the chance level), and
`untrained`, the same weights at initialisation, which shows what token identity alone gives.

Letters: `D` domains, `W` windows, `L` MoE layers, `E` experts.
"""

import numpy as np
from numpy.typing import NDArray

NUM_SHUFFLES = 20
"""Permutations the shuffled control is averaged over."""


def mutual_information(counts_DE: NDArray[np.int64]) -> float:
    """Return I(domain; expert) in bits of the empirical joint distribution n_de / n: 0 if independent, at most
    min(log2 D, log2 E). Where no token was sent to any expert there is nothing to tell: 0.

    Args:
        counts_DE: how often a token of each domain was sent to each expert.
    """
    total = counts_DE.sum()
    if total == 0:
        return 0.0
    joint_DE = counts_DE / total
    independent_DE = joint_DE.sum(axis=1, keepdims=True) * joint_DE.sum(axis=0, keepdims=True)
    positive = joint_DE > 0
    return max(0.0, float((joint_DE[positive] * np.log2(joint_DE[positive] / independent_DE[positive])).sum()))


def domain_information(counts_WLE: NDArray[np.int64], domain_of_W: NDArray[np.int64]) -> list[float]:
    """Return I(domain; expert) in bits per layer.

    Args:
        counts_WLE: tokens of each window sent to each expert in each layer; the same number of windows per domain.
        domain_of_W: domain index of each window.
    """
    domains = np.unique(domain_of_W)
    counts_DLE = np.stack([counts_WLE[domain_of_W == domain].sum(axis=0) for domain in domains])
    return [mutual_information(counts_DLE[:, layer]) for layer in range(counts_WLE.shape[1])]


def shuffled_domain_information(
    counts_WLE: NDArray[np.int64], domain_of_W: NDArray[np.int64], *, seed: int
) -> list[float]:
    """Return the mean of `domain_information` over `NUM_SHUFFLES` permutations of the labels over windows."""
    generator = np.random.default_rng(seed)
    rounds = [domain_information(counts_WLE, generator.permutation(domain_of_W)) for _ in range(NUM_SHUFFLES)]
    return np.mean(rounds, axis=0).tolist()
