"""Independent draws. Every value has a stream of its own, seeded by (seed, trial, name).

Adding a parameter to a space therefore leaves the draws of the others as they were.
"""

import hashlib
import math
import random
from collections.abc import Iterable

from orchestrator.search.grid import AnyDomain, lattice_point, num_lattice_points
from orchestrator.search.space import Parameter, active, parameters
from orchestrator.spec import ChoiceDomain, ExperimentSpec, FloatDomain, IntDomain, Scalar


def derived_seed(*parts: int | str) -> int:
    """A 32-bit seed: the first 4 bytes of sha256 over the parts."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def random_point(spec: ExperimentSpec, number: int) -> dict[str, Scalar]:
    """The random sampler's point for trial `number`."""
    return draw(parameters(spec), spec.seed, number)


def draw(space: Iterable[Parameter], seed: int, number: int) -> dict[str, Scalar]:
    """Point `number` of the stream that `seed` begins."""
    point: dict[str, Scalar] = {}
    for parameter in space:
        if active(parameter, point):
            # `random()` is the one method whose sequence Python promises to keep.
            uniform = random.Random(derived_seed(seed, number, parameter.name)).random()
            point[parameter.name] = _at(parameter.domain, uniform)
    return point


def _at(domain: AnyDomain, uniform: float) -> Scalar:
    """The value at the place `uniform` in [0, 1) of a domain."""
    if isinstance(domain, IntDomain):
        low, high = domain.int
        if domain.log:
            # Each whole number owns the real numbers that round to it.
            start, end = math.log(low - 0.5), math.log(high + 0.5)
            return min(high, max(low, round(math.exp(start + uniform * (end - start)))))
        return low + domain.step * int(uniform * ((high - low) // domain.step + 1))
    if isinstance(domain, FloatDomain):
        low, high = domain.float
        if domain.log:
            start, end = math.log(low), math.log(high)
            return min(high, max(low, math.exp(start + uniform * (end - start))))
        if domain.step is not None:
            return lattice_point(low, high, domain.step, int(uniform * num_lattice_points(low, high, domain.step)))
        return min(high, low + uniform * (high - low))
    if isinstance(domain, ChoiceDomain):
        return domain.choice[int(uniform * len(domain.choice))]
    return sorted(domain.options)[int(uniform * len(domain.options))]
