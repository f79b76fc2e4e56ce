"""Domains as Optuna's distributions, and their values both ways.

What is chosen becomes an index, since 1, 1.0 and True would be one choice to Optuna, and a lattice of real numbers the
numbers of its points, since sums of binary fractions are not exact.
"""

from typing import TYPE_CHECKING

from orchestrator.search.grid import AnyDomain, lattice_point, num_lattice_points
from orchestrator.spec import ChoiceDomain, FloatDomain, IntDomain, Scalar

if TYPE_CHECKING:
    import optuna


def distribution(domain: AnyDomain) -> "optuna.distributions.BaseDistribution":
    """Optuna's form of a domain."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, IntDomain):
        low, high = domain.int
        return IntDistribution(low, low + (high - low) // domain.step * domain.step, log=domain.log, step=domain.step)
    if isinstance(domain, FloatDomain):
        low, high = domain.float
        if domain.step is None:
            return FloatDistribution(low, high, log=domain.log)
        return IntDistribution(0, num_lattice_points(low, high, domain.step) - 1)
    return CategoricalDistribution(list(range(len(choices(domain)))))


def suggest(trial: "optuna.Trial", name: str, domain: AnyDomain) -> Scalar:
    """What a trial's sampler suggests for a domain, as a value of it."""
    from optuna.distributions import FloatDistribution, IntDistribution

    form = distribution(domain)
    if isinstance(form, IntDistribution):
        return from_optuna(domain, trial.suggest_int(name, form.low, form.high, step=form.step, log=form.log))
    if isinstance(form, FloatDistribution):
        return from_optuna(domain, trial.suggest_float(name, form.low, form.high, log=form.log))
    return from_optuna(domain, trial.suggest_categorical(name, list(range(len(choices(domain))))))


def choices(domain: AnyDomain) -> tuple[Scalar, ...]:
    """The values of a choice, or the names of options, in the order of their indices."""
    if isinstance(domain, ChoiceDomain):
        return domain.choice
    assert not isinstance(domain, IntDomain | FloatDomain)
    return tuple(sorted(domain.options))


def to_optuna(domain: AnyDomain, value: Scalar) -> float | int:
    """A value of the domain as Optuna has it."""
    if isinstance(domain, FloatDomain) and domain.step is not None:
        assert isinstance(value, int | float)
        return round((value - domain.float[0]) / domain.step)
    if isinstance(domain, IntDomain | FloatDomain):
        assert isinstance(value, int | float)
        return value
    return next(
        index for index, choice in enumerate(choices(domain)) if choice == value and type(choice) is type(value)
    )


def from_optuna(domain: AnyDomain, suggested: float) -> Scalar:
    """The value of the domain that Optuna's stands for."""
    if isinstance(domain, FloatDomain) and domain.step is not None:
        low, high = domain.float
        return lattice_point(low, high, domain.step, int(suggested))
    if isinstance(domain, IntDomain):
        return int(suggested)
    if isinstance(domain, FloatDomain):
        return float(suggested)
    return choices(domain)[int(suggested)]
