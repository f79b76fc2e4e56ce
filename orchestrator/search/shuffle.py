"""A random order of the numbers below n that is never written down: place `i` of it is computed from `i` alone."""

from orchestrator.search.draw import derived_seed

_NUM_ROUNDS = 4
"""Rounds from which a Feistel network is a pseudorandom permutation: Luby and Rackoff 1988, SIAM J. Comput. 17(2)."""


def shuffled(index: int, size: int, seed: int) -> int:
    """Place `index` of an order of 0 ... size - 1 that `seed` chooses.

    A Feistel network permutes the numbers of an even count of bits; what lands beyond `size` is permuted again
    (cycle walking: Black and Rogaway 2002, CT-RSA, section 3), on average less than four times.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    while True:
        index = _permuted(index, half, seed)
        if index < size:
            return index


def _permuted(value: int, half: int, seed: int) -> int:
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for number in range(_NUM_ROUNDS):
        left, right = right, left ^ (derived_seed(seed, "shuffle", number, half, right) & mask)
    return left << half | right
