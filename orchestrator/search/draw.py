"""Independent draws. Every value has a stream of its own, seeded by (seed, trial, name).

Adding a parameter to a space therefore leaves the draws of the others as they were.
"""

import hashlib
import math
import random
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from orchestrator.search.grid import AnyDomain, lattice_point, num_lattice_points
from orchestrator.search.space import Parameter, active
from orchestrator.spec import ChoiceDomain, FloatDomain, IntDomain, Scalar


def derived_seed(*parts: int | str) -> int:
    """A 32-bit seed: the first 4 bytes of sha256 over the parts."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def draw(
    space: Iterable[Parameter],
    seed: int,
    number: int,
    *,
    attempt: int = 0,
    fixed: Mapping[str, Scalar] = MappingProxyType({}),
) -> dict[str, Scalar]:
    """Point `number` of the stream that `seed` begins.

    Args:
        attempt: how many draws of this point were rejected; each has streams of its own.
        fixed: values that are given. Those of parameters that do not exist at the point are left out.
    """
    again = (attempt,) if attempt else ()
    point: dict[str, Scalar] = {}
    for parameter in space:
        if not active(parameter, point):
            continue
        if parameter.name in fixed:
            point[parameter.name] = fixed[parameter.name]
        else:
            # `random()` is the one method whose sequence Python promises to keep.
            uniform = random.Random(derived_seed(seed, number, parameter.name, *again)).random()
            point[parameter.name] = value_at(parameter.domain, uniform)
    return point


def value_at(domain: AnyDomain, uniform: float) -> Scalar:
    """The value at the place `uniform` in [0, 1) of a domain; equal parts of it are equally probable when drawn."""
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


def place_of(domain: IntDomain | FloatDomain, value: float) -> float:
    """The place in [0, 1] of a number of the domain: `value_at` of it is the number again.

    Whole numbers and lattice points own an interval each; this is its middle.
    """
    if isinstance(domain, IntDomain):
        low, high = domain.int
        if domain.log:
            start, end = math.log(low - 0.5), math.log(high + 0.5)
            return (math.log(value) - start) / (end - start)
        return ((value - low) // domain.step + 0.5) / ((high - low) // domain.step + 1)
    low, high = domain.float
    if domain.log:
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    if domain.step is not None:
        return (round((value - low) / domain.step) + 0.5) / num_lattice_points(low, high, domain.step)
    return (value - low) / (high - low)


def holds(domain: AnyDomain, value: Scalar) -> bool:
    """True if the domain has the value, of the same type; a float domain takes whole numbers too."""
    if isinstance(domain, IntDomain):
        low, high = domain.int
        return type(value) is int and low <= value <= high and (value - low) % domain.step == 0
    if isinstance(domain, FloatDomain):
        low, high = domain.float
        if type(value) not in (int, float) or not isinstance(value, int | float) or not low <= value <= high:
            return False
        steps = 0.0 if domain.step is None else (value - low) / domain.step
        return abs(steps - round(steps)) < 1e-6
    if isinstance(domain, ChoiceDomain):
        return any(choice == value and type(choice) is type(value) for choice in domain.choice)
    return isinstance(value, str) and value in domain.options
