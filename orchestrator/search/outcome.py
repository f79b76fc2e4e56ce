"""What a trial's evaluations and figures come to: the objective's value, and the limits that it breaks."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from orchestrator.objective import (
    START,
    WORST,
    BestValue,
    FurtherObjective,
    MeanValue,
    Objective,
    OutcomeConstraint,
    ValueAt,
)
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, TrialState
from orchestrator.store.records import TrialKind, TrialRecord

CANNOT_RUN = (Cause.DIVERGED, Cause.OUT_OF_MEMORY, Cause.INVALID_CONFIG, Cause.DOES_NOT_FIT)
"""Causes that belong to the point: there again, it would fail again."""
_FIELDS = {
    "router/max_violation": "worst_max_violation",
    "router/token_entropy": "min_token_entropy",
    "router/load_entropy": "min_load_entropy",
    "router/dead_fraction": "max_dead_fraction",
}
"""Metric -> field of RunSummary; the others are fields themselves."""

References = Mapping[str, Mapping[str, float]]
"""Baseline's name -> corpus, and `all`, -> its held-out bits per byte at the end."""
NO_REFERENCES: References = MappingProxyType({})


def reduced(objective: Objective | FurtherObjective, values: Mapping[int, float]) -> tuple[float, int] | None:
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


def objective_values(trial: TrialRecord, num_further: int) -> tuple[float, ...] | None:
    """A trial's value of every objective, the first one first; None if it lacks one of them."""
    further = (trial.further_values or ()) if num_further else ()
    values = [value for value in (trial.objective, *further) if value is not None]
    return tuple(values) if len(values) == 1 + num_further else None


def directions(spec: ExperimentSpec) -> list[Literal["minimize", "maximize"]]:
    """The direction of every objective, the first one first."""
    return [spec.objective.direction, *(further.direction for further in spec.further_objectives)]


def figure_of(metric: str, summary: Mapping[str, Any] | None) -> float | None:
    """A figure of a run's summary by its metric's name; None if the run has none (a dense model's router)."""
    return (summary or {}).get(_FIELDS.get(metric, metric))


def references(objective: Objective, trials: Iterable[TrialRecord]) -> References:
    """What the limits of an objective are relative to: of the baselines that they name, those that have completed.

    Of a baseline with several seeds it is the mean over those that have.
    """
    named = {constraint.relative_to for constraint in objective.constraints} - {None, START}
    if not named:
        return NO_REFERENCES
    found: dict[str, list[Mapping[str, float]]] = defaultdict(list)
    for trial in trials:
        if trial.kind is TrialKind.BASELINE and trial.label in named and trial.state is TrialState.COMPLETED:
            found[str(trial.label)].append((trial.summary or {}).get("bits_per_byte") or {})
    return {
        label: {
            domain: statistics.fmean(figures[domain] for figures in replicas)
            for domain in replicas[0]
            if all(domain in figures for figures in replicas)
        }
        for label, replicas in found.items()
    }


def excesses(objective: Objective, trial: TrialRecord, known: References = NO_REFERENCES) -> dict[str, float]:
    """Constraint in words -> by how much the trial is beyond it, at most 0 where it keeps to it.

    A figure that the trial does not have (a dense model's router) keeps to every limit.

    Args:
        known: what limits relative to a baseline compare with.
    """
    found: dict[str, float] = {}
    for constraint in objective.constraints:
        figure = _figure(constraint, trial, known)
        excess = 0.0
        if figure is not None and constraint.at_most is not None:
            excess = figure - constraint.at_most
        elif figure is not None and constraint.at_least is not None:
            excess = constraint.at_least - figure
        found[in_words(constraint)] = excess
    return found


def violations(objective: Objective, trial: TrialRecord, known: References = NO_REFERENCES) -> tuple[str, ...]:
    """The constraints that the trial breaks, in words, with its figures."""
    return tuple(words for _, words in _broken(objective, trial, known))


def veto(objective: Objective, trial: TrialRecord, known: References = NO_REFERENCES) -> str | None:
    """The first constraint with `veto` that the trial breaks, in words, with its figure; None if it may win."""
    return next((words for constraint, words in _broken(objective, trial, known) if constraint.veto), None)


def in_words(constraint: OutcomeConstraint) -> str:
    """A constraint as people write it."""
    name: str = constraint.metric
    if constraint.metric == "eval/bits_per_byte":
        name += f" ({constraint.domain})"
    if constraint.relative_to is not None:
        name += " over the start" if constraint.relative_to == START else f" over {constraint.relative_to!r}"
    if constraint.at_most is not None:
        return f"{name} <= {constraint.at_most:g}"
    return f"{name} >= {constraint.at_least:g}"


def _broken(objective: Objective, trial: TrialRecord, known: References) -> list[tuple[OutcomeConstraint, str]]:
    found = excesses(objective, trial, known) if objective.constraints else {}
    return [
        (constraint, f"{words}: {_figure(constraint, trial, known):.4g}")
        for constraint in objective.constraints
        if found[words := in_words(constraint)] > 0
    ]


def _figure(constraint: OutcomeConstraint, trial: TrialRecord, known: References) -> float | None:
    if constraint.metric != "eval/bits_per_byte":
        return figure_of(constraint.metric, trial.summary)
    if trial.state is TrialState.PRUNED:
        return None  # measured after fewer tokens than the limit is about
    summary = trial.summary or {}
    found: Mapping[str, float] = summary.get("bits_per_byte") or {}
    if constraint.relative_to is not None:
        before = known.get(constraint.relative_to, {})
        if constraint.relative_to == START:
            initial: Mapping[str, float] = summary.get("initial_bits_per_byte") or {}
            before = {"all": statistics.fmean(initial.values()), **initial} if initial else {}
        found = {domain: found[domain] - before[domain] for domain in found if domain in before}
    if constraint.domain != WORST:
        return found.get(constraint.domain)
    extreme = max if constraint.at_most is not None else min
    return extreme((value for domain, value in found.items() if domain != "all"), default=None)
