"""Which domain each sample comes from: a periodic schedule that keeps the mixture's weights at every prefix.

Drawing the domain of each sample at random lets the shares of a short run wander: over 1,000 samples a domain of weight
1/6 gets 167 +- 12. Small experiments compare losses that such a shift moves, so the domains are scheduled instead.
"""

from collections.abc import Mapping
from fractions import Fraction
from math import lcm

import numpy as np
from numpy.typing import NDArray

MAX_PERIOD = 10_000
"""Weights that are not multiples of 1/period for any period up to this are rounded to multiples of 1/MAX_PERIOD."""


class DomainSchedule:
    """Assigns samples 0, 1, 2, ... to domains; of the first n, each domain has share * n, give or take less than one.

    One period is laid out once by Tijdeman's rule; index arithmetic does the rest, so any sample is found in constant
    time. Source: Tijdeman 1980, "The chairman assignment problem", Discrete Mathematics 32, p. 323-330: the deviation
    never exceeds 1 - 1/(2k-2) for k domains, which is the best possible.

    Args:
        weights: positive numbers in any unit, by domain. Their order does not matter.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.domains = tuple(sorted(weights))
        self._counts_D = _counts_per_period([weights[domain] for domain in self.domains], self.domains)
        self.period = sum(self._counts_D)
        self._domain_P = _one_period(self._counts_D)
        self._rank_P = np.empty(self.period, dtype=np.int64)
        for domain, count in enumerate(self._counts_D):
            self._rank_P[self._domain_P == domain] = np.arange(count)

    @property
    def shares(self) -> Mapping[str, float]:
        """The fraction of samples of each domain; sums to one."""
        return {domain: count / self.period for domain, count in zip(self.domains, self._counts_D, strict=True)}

    def locate(self, index: int) -> tuple[int, int]:
        """Return the domain (as an index into `domains`) of sample `index`, and how many samples of it come before."""
        if index < 0:
            raise ValueError(f"sample index {index} is negative; samples are numbered from 0")
        block, position = divmod(index, self.period)
        domain = int(self._domain_P[position])
        return domain, block * self._counts_D[domain] + int(self._rank_P[position])


def _counts_per_period(weights: list[float], domains: tuple[str, ...]) -> list[int]:
    """Return how many samples of each domain a period has; exact for weights with a small common denominator."""
    if not weights:
        raise ValueError("a mixture needs at least one domain")
    for domain, weight in zip(domains, weights, strict=True):
        if not 0 < weight < float("inf"):
            raise ValueError(f"weight of {domain} is {weight}; give a positive number, or leave the domain out")
    # Through the decimal notation: the float 0.1 is meant as 1/10, not as 3602879701896397/36028797018963968.
    exact = [Fraction(repr(float(weight))) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    period = lcm(*(share.denominator for share in shares))
    if period <= MAX_PERIOD:
        return [int(share * period) for share in shares]
    counts = [int(share * MAX_PERIOD) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda number: (counts[number] - shares[number] * MAX_PERIOD, number))
    for number in by_remainder[: MAX_PERIOD - sum(counts)]:
        counts[number] += 1
    for domain, share, count in zip(domains, shares, counts, strict=True):
        if count == 0:
            raise ValueError(
                f"{domain} is {float(share):.2g} of the mixture; "
                f"raise its weight to at least 1/{MAX_PERIOD} of the whole, or leave it out"
            )
    return counts


def _one_period(counts_D: list[int]) -> NDArray[np.int8]:
    """Return the domain of each sample of one period, shape [sum of counts]."""
    period, num_domains = sum(counts_D), len(counts_D)
    domain_P = np.zeros(period, dtype=np.int8)
    if num_domains == 1:
        return domain_P
    # In units of 1/period: a domain may be chosen once it lags by 1/(2k-2) of a sample, and must be before it lags by
    # more than 1 - 1/(2k-2). Of those that may, the one that must soonest is chosen.
    scale = 2 * num_domains - 2
    chosen_D = [0] * num_domains
    for position in range(period):
        lags = [count * (position + 1) - period * chosen for count, chosen in zip(counts_D, chosen_D, strict=True)]
        eligible = [domain for domain in range(num_domains) if lags[domain] * scale >= period]
        urgent = min(eligible, key=lambda domain: ((scale - 1) * period - scale * lags[domain]) / counts_D[domain])
        domain_P[position] = urgent
        chosen_D[urgent] += 1
    return domain_P
