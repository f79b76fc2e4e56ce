"""What a trial's evaluations and figures come to: the objective's value, and the limits that it breaks."""

import math
import statistics
from collections.abc import Mapping

from orchestrator.objective import BestValue, MeanValue, Objective, OutcomeConstraint, ValueAt
from orchestrator.store.records import TrialRecord

_FIELDS = {
    "router/max_violation": "worst_max_violation",
    "router/token_entropy": "min_token_entropy",
    "router/load_entropy": "min_load_entropy",
    "router/dead_fraction": "max_dead_fraction",
}
"""Metric -> field of RunSummary; the others are fields themselves."""


def reduced(objective: Objective, values: Mapping[int, float]) -> tuple[float, int] | None:
    """The objective's value and the training tokens it belongs to; None without any evaluation.

    What is not finite is nobody's best, and makes a mean not finite.

    Args:
        values: training tokens -> value of the objective's metric there.
    """
    if not values:
        return None
    newest = max(values)
    reduction = objective.value
    if isinstance(reduction, BestValue):
        sign = 1 if objective.direction == "minimize" else -1
        finite = [tokens for tokens in values if math.isfinite(values[tokens])]
        best = min(finite, key=lambda tokens: (sign * values[tokens], tokens), default=newest)
        return values[best], best
    if isinstance(reduction, MeanValue):
        counted = sorted(values)[-reduction.num_evaluations :]
        return statistics.fmean(values[tokens] for tokens in counted), newest
    if isinstance(reduction, ValueAt):
        at = min((tokens for tokens in values if tokens >= reduction.tokens), default=newest)
        return values[at], at
    return values[newest], newest


def excesses(objective: Objective, trial: TrialRecord) -> dict[str, float]:
    """Constraint in words -> by how much the trial is beyond it, at most 0 where it keeps to it.

    A figure that the trial does not have (a dense model's router) keeps to every limit.
    """
    found: dict[str, float] = {}
    for constraint in objective.constraints:
        figure = (trial.summary or {}).get(_FIELDS.get(constraint.metric, constraint.metric))
        excess = 0.0
        if figure is not None and constraint.at_most is not None:
            excess = figure - constraint.at_most
        elif figure is not None and constraint.at_least is not None:
            excess = constraint.at_least - figure
        found[_in_words(constraint)] = excess
    return found


def violations(objective: Objective, trial: TrialRecord) -> tuple[str, ...]:
    """The constraints that the trial breaks, in words, with its figures."""
    broken: list[str] = []
    for constraint in objective.constraints:
        words = _in_words(constraint)
        if excesses(objective, trial)[words] > 0:
            figure = (trial.summary or {})[_FIELDS.get(constraint.metric, constraint.metric)]
            broken.append(f"{words}: {figure:.4g}")
    return tuple(broken)


def _in_words(constraint: OutcomeConstraint) -> str:
    if constraint.at_most is not None:
        return f"{constraint.metric} <= {constraint.at_most:g}"
    return f"{constraint.metric} >= {constraint.at_least:g}"
