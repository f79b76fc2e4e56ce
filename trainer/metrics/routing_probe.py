"""What a router does with a fixed set of tokens: how much of it changed, who goes together, who specialises in what.

Every figure goes with what chance gives: `uniform`, experts drawn evenly at random, and for specialisation `shuffled`,
the same routing with the labels permuted. The largest of several shares is biased upwards on few tokens, and only the
shuffled control shows by how much.

Letters: `T` tokens, `E` experts, `W` windows, `D` domains, `U` distinct tokens of the vocabulary.
"""

import numpy as np
from numpy.typing import NDArray

NUM_SHUFFLES = 10
"""Permutations that a shuffled control is averaged over."""

MIN_OCCURRENCES = 4
"""A token of the vocabulary is counted from so many occurrences on: one alone goes wholly where it goes."""

Chosen = NDArray[np.bool_]
"""[T, E], whether the token chose the expert (or it the token), before any is dropped."""


def overlap(chosen_TE: Chosen, reference_TE: Chosen) -> float:
    """Return the share of the reference's pairs of token and expert that are pairs here: 1 where it has none.

    With K experts per token that is the mean over tokens of |A and B| / K, the router saturation of Muennighoff et al.
    2024 (OLMoE), arXiv:2409.02060, eq. 5, where the reference is the end of the run. Two random routings have K / E.
    """
    num_pairs = int(reference_TE.sum())
    return float((chosen_TE & reference_TE).sum() / num_pairs) if num_pairs else 1.0


def changed(first_T: NDArray[np.int64], reference_T: NDArray[np.int64]) -> float:
    """Return the share of tokens whose first expert is another than in the reference: 1 - 1 / E at random."""
    return float((first_T != reference_T).mean())


def coactivation(chosen_TE: Chosen) -> NDArray[np.float64]:
    """Return N_ij / N_i, float64 [E, E]: of the tokens of expert i, those that expert j has too; 0 without tokens.

    The diagonal is 1. Source: OLMoE, eq. 6, over all pairs of a token's experts.
    """
    chosen = chosen_TE.astype(np.float64)
    return (chosen.T @ chosen) / np.maximum(chosen.sum(axis=0), 1.0)[:, None]


def largest_coactivation(chosen_TE: Chosen) -> float:
    """Return the largest N_ij / N_i of two different experts; evenly at random all are (K - 1) / (E - 1)."""
    shares_EE = coactivation(chosen_TE)
    np.fill_diagonal(shares_EE, 0.0)
    return float(shares_EE.max())


def shares_by_label(chosen_TE: Chosen, label_T: NDArray[np.int64], *, min_tokens: int = 1) -> NDArray[np.float64]:
    """Return N_ix / N_x, float64 [labels, E]: of the tokens of each label, those that each expert has.

    Source: OLMoE, eq. 7 (labels are domains) and eq. 8 (labels are tokens of the vocabulary).

    Args:
        chosen_TE: the routing.
        label_T: of each token.
        min_tokens: labels of fewer tokens are left out.
    """
    labels, index_T, count_U = np.unique(label_T, return_inverse=True, return_counts=True)
    totals_UE = np.zeros((len(labels), chosen_TE.shape[1]))
    np.add.at(totals_UE, index_T, chosen_TE.astype(np.float64))
    kept_U = count_U >= min_tokens
    return totals_UE[kept_U] / count_U[kept_U, None]


def specialization(chosen_TE: Chosen, label_T: NDArray[np.int64], *, min_tokens: int = 1) -> float:
    """Return the mean over labels of the largest share that any expert has of a label's tokens; NaN without labels.

    1 where each label has an expert that takes all of it, K / E where experts take evenly of all.
    """
    shares = shares_by_label(chosen_TE, label_T, min_tokens=min_tokens)
    return float(shares.max(axis=1).mean()) if len(shares) else float("nan")


def shuffled_specialization(chosen_TE: Chosen, label_W: NDArray[np.int64], *, seed: int, min_tokens: int = 1) -> float:
    """Return the mean of `specialization` over permutations of the labels over windows of equal length.

    Labels of whole windows are permuted over windows, since tokens of a window resemble each other; labels of tokens
    are windows of one token.
    """
    generator = np.random.default_rng(seed)
    length = len(chosen_TE) // len(label_W)
    return float(
        np.mean(
            [
                specialization(chosen_TE, np.repeat(generator.permutation(label_W), length), min_tokens=min_tokens)
                for _ in range(NUM_SHUFFLES)
            ]
        )
    )
