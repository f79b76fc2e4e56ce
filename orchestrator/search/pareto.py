"""The Pareto front: the trials that no other one beats in one objective without losing in another."""

from collections.abc import Mapping, Sequence

from orchestrator.search.outcome import directions, objective_values
from orchestrator.spec import ExperimentSpec
from orchestrator.store.records import TrialRecord

Costs = tuple[float, ...]
"""A value per objective, all to be small."""


def costs(spec: ExperimentSpec, trial: TrialRecord) -> Costs | None:
    """A trial's values, turned around where they are to be maximised; None if it lacks one of them."""
    values = objective_values(trial, len(spec.further_objectives))
    if values is None:
        return None
    return tuple(
        value if direction == "minimize" else -value for value, direction in zip(values, directions(spec), strict=True)
    )


def dominates(one: Costs, other: Costs) -> bool:
    """True if `one` is nowhere worse than `other` and somewhere better."""
    return one != other and all(mine <= its for mine, its in zip(one, other, strict=True))


def front(points: Mapping[str, Costs]) -> frozenset[str]:
    """The keys of the points that no other one dominates. Equal points are all on it or none."""
    # In this order nothing is dominated by what comes after it, so each is compared with the front so far only.
    ordered = sorted(points, key=lambda key: points[key])
    found: list[str] = []
    for key in ordered:
        if not any(dominates(points[other], points[key]) for other in found):
            found.append(key)
    return frozenset(found)


def pareto_front(spec: ExperimentSpec, eligible: Sequence[TrialRecord]) -> frozenset[str]:
    """The ids of the trials on the front; of trials without all values none is.

    Args:
        eligible: completed trials that keep to every limit.
    """
    return front({trial.id: found for trial in eligible if (found := costs(spec, trial)) is not None})
