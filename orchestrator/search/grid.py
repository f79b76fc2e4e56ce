"""The grid as a number system: point `i` is read off its index, so counting or entering a grid of any size is free."""

from orchestrator.samplers import BruteForceSampler, GridSampler
from orchestrator.search.space import DOMAIN, inner_domains
from orchestrator.spec import ChoiceDomain, ExperimentSpec, FloatDomain, IntDomain, OptionsDomain, Scalar

AnyDomain = IntDomain | FloatDomain | ChoiceDomain | OptionsDomain


def grid_size(spec: ExperimentSpec) -> int:
    """How many points the grid over the whole space has; raises ValueError for a float domain without a step."""
    size = 1
    for domain in spec.space.values():
        size *= _size(domain)
    return size


def grid_point(spec: ExperimentSpec, index: int) -> dict[str, Scalar]:
    """Point `index` of the grid, 0-based: the first parameter (by name) varies slowest."""
    point: dict[str, Scalar] = {}
    for name in sorted(spec.space, reverse=True):
        domain = spec.space[name]
        index, digit = divmod(index, _size(domain))
        point.update(_read(name, domain, digit))
    return dict(sorted(point.items()))


def num_lattice_points(low: float, high: float, step: float) -> int:
    """Points of low, low + step, ... that do not exceed high, with room for the rounding of one division."""
    return int((high - low) / step + 1e-9) + 1


def num_search_trials(spec: ExperimentSpec) -> int:
    """How many trials the search makes, baselines not counted. Without a number, and without a grid, the base alone."""
    if isinstance(spec.sampler, GridSampler | BruteForceSampler):
        size = grid_size(spec) + len(spec.enqueue)
        return size if spec.num_trials is None else min(spec.num_trials, size)
    return 1 if spec.num_trials is None else spec.num_trials


def lattice_point(low: float, high: float, step: float, index: int) -> float:
    """Point `index` of the lattice, without the dust of binary sums: 0.3, not 0.30000000000000004."""
    return max(low, min(high, float(f"{low + index * step:.12g}")))


def _size(domain: AnyDomain) -> int:
    if isinstance(domain, IntDomain):
        low, high = domain.int
        return (high - low) // domain.step + 1
    if isinstance(domain, FloatDomain):
        low, high = domain.float
        if domain.step is None:
            if low == high:
                return 1
            raise ValueError(f"a grid needs a step for the real numbers from {low} to {high}, or a choice of values")
        return num_lattice_points(low, high, domain.step)
    if isinstance(domain, ChoiceDomain):
        return len(domain.choice)
    return sum(_option_size(domain, option) for option in domain.options)


def _option_size(domain: OptionsDomain, option: str) -> int:
    size = 1
    for _, inner in inner_domains(domain.options[option]):
        size *= _size(DOMAIN.validate_python(inner))
    return size


def _read(name: str, domain: AnyDomain, digit: int) -> dict[str, Scalar]:
    """The value (and, of an option, the values inside it) that a digit of the index stands for."""
    if isinstance(domain, IntDomain):
        return {name: domain.int[0] + digit * domain.step}
    if isinstance(domain, FloatDomain):
        low, high = domain.float
        return {name: low if domain.step is None else lattice_point(low, high, domain.step, digit)}
    if isinstance(domain, ChoiceDomain):
        return {name: domain.choice[digit]}
    for option in sorted(domain.options):
        size = _option_size(domain, option)
        if digit < size:
            point: dict[str, Scalar] = {name: option}
            for place, inner in inner_domains(domain.options[option]):
                inner_domain = DOMAIN.validate_python(inner)
                digit, inner_digit = divmod(digit, _size(inner_domain))
                point.update(_read(".".join((name, option, *place)), inner_domain, inner_digit))
            return point
        digit -= size
    raise AssertionError("a digit is below its domain's size")
