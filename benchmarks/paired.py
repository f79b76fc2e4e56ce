"""The effect of something that is on in one turn of every pair and off in the other: an estimate and its interval.

A pair's two turns follow each other in an order that is drawn for each pair. If the effect were nothing, the logarithm
of a pair's ratio would so be as often positive as negative at every size, whatever else the machine does and however
slow it grows meanwhile: its distribution is symmetric about zero by the draw. That is all that the Wilcoxon signed-rank
test asks for, and what the estimate rests on.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONTROL = "control"
"""What pairs are called that have nothing in both turns: their effect is the error of the measurement."""


class Effect(NamedTuple):
    """A ratio, turns with over turns without.

    Attributes:
        ratio: the Hodges-Lehmann estimate.
        low, high: the ends of the interval.
        num_pairs: that it is estimated from.
    """

    ratio: float
    low: float
    high: float
    num_pairs: int


def effect(ratios: Sequence[float], *, confidence: float = 0.95) -> Effect:
    """Returns what the ratios of pairs say together.

    The estimate is the median of the means of any two logarithms (Hodges and Lehmann 1963), a turn with itself
    included: almost as sharp as the mean for normal noise, and a turn beside which the machine did something else moves
    it little. The interval holds the ratios that the Wilcoxon signed-rank test does not refuse (exact distribution).

    Args:
        ratios: one of each pair, positive.
        confidence: that the interval has at least.

    Raises:
        ValueError: too few pairs for an interval of that confidence; 6 are enough for 0.95.
    """
    logs = np.log(np.asarray(ratios, dtype=np.float64))
    number = len(logs)
    first, second = np.triu_indices(number)
    means = np.sort((logs[first] + logs[second]) / 2)
    outside = _num_outside(number, (1 - confidence) / 2)
    if outside == 0:
        raise ValueError(f"{number} pairs give no interval of confidence {confidence}; measure more rounds")
    low, high = means[outside - 1], means[len(means) - outside]
    return Effect(math.exp(float(np.median(means))), math.exp(float(low)), math.exp(float(high)), number)


def _num_outside(number: int, tail: float) -> int:
    """Returns k so that the k-th least and greatest mean of two are the ends: the largest with P(W < k) <= tail."""
    # Of the 2^n ways to give the ranks 1 to n signs, how many have which sum of the positive ones.
    ways = np.zeros(number * (number + 1) // 2 + 1)
    ways[0] = 1.0
    for rank in range(1, number + 1):
        ways[rank:] = (ways[rank:] + ways[:-rank]) / 2
        ways[:rank] /= 2
    return int(np.searchsorted(np.cumsum(ways), tail, side="right"))
