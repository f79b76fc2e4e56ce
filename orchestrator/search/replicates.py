"""Results by point, where every configuration was tried with several seeds: means, intervals, paired differences.

Every point has the same seeds, so two of them are compared seed by seed: what a seed does to both cancels out. All
intervals are 95 % intervals of Student's t distribution, exact for normal errors however few seeds there are.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.search.outcome import references, veto, violations
from orchestrator.search.points import Point, points_of
from orchestrator.spec import ExperimentSpec, Scalar
from orchestrator.states import TrialState
from orchestrator.store.records import TrialKind, TrialRecord

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """A point's objective minus a baseline's, over the seeds that both completed.

    Attributes:
        value: mean of the differences.
        low, high: interval of the mean; None of fewer than two pairs.
        within_noise: whether the interval has 0 in it: seeds alone can explain the difference. None without one.
    """

    baseline_point: int
    baseline_label: str
    num_pairs: int
    value: float
    low: float | None
    high: float | None
    within_noise: bool | None


@dataclass(frozen=True, kw_only=True)
class PointResult:
    """One configuration and what its seeds came to.

    Attributes:
        rank: 1 is best, by the mean, baselines among the others; None while a seed has not ended, and where none has
            completed. Points beyond a limit of the objective rank behind the others, and points some of whose seeds
            failed behind those with all of them. A point with a veto has no rank.
        point: its number, baselines first.
        trial_ids: of its replicas, by seed.
        num_completed, num_failed, num_open: of its replicas; the others were stopped early or cancelled.
        mean, standard_deviation: of the objective over the completed replicas; the deviation of two at least.
        low, high: interval of the mean; None of fewer than two.
        differences: to every other baseline with a seed that both completed.
    """

    rank: int | None
    point: int
    kind: TrialKind
    label: str | None
    params: dict[str, Scalar]
    trial_ids: tuple[str, ...]
    num_completed: int
    num_failed: int
    num_open: int
    mean: float | None
    standard_deviation: float | None
    low: float | None
    high: float | None
    differences: tuple[PairedDifference, ...]
    violations: tuple[str, ...]


def results_by_point(spec: ExperimentSpec, trials: Sequence[TrialRecord]) -> tuple[PointResult, ...]:
    """The points of an experiment with replicas, best first; () where every point has one trial.

    Args:
        trials: all of the experiment, in any order.
    """
    if spec.replicas == 1:
        return ()
    points = points_of(spec, trials)
    values = {point.record.number: _by_seed(point) for point in points}
    baselines = [point for point in points if point.record.kind is TrialKind.BASELINE]
    known = references(spec.objective, trials)
    sign = 1 if spec.objective.direction == "minimize" else -1

    def may_rank(point: Point) -> bool:
        is_over = point.record.finished_at_ms is not None
        return is_over and bool(values[point.record.number]) and veto(spec.objective, point.record, known) is None

    def place(point: Point) -> tuple[float, ...]:
        mean = statistics.fmean(values[point.record.number].values())
        is_beyond = bool(violations(spec.objective, point.record, known))
        return (is_beyond, _num_failed(point) > 0, sign * mean, point.record.number)

    ranked = sorted((point for point in points if may_rank(point)), key=place)
    others = [point for point in points if not may_rank(point)]
    found: list[PointResult] = []
    for rank, point in enumerate([*ranked, *others], start=1):
        record, own = point.record, values[point.record.number]
        low, high = interval(list(own.values()))
        found.append(
            PointResult(
                rank=rank if rank <= len(ranked) else None,
                point=record.number,
                kind=record.kind,
                label=record.label,
                params=record.params,
                trial_ids=tuple(trial.id for trial in point.replicas),
                num_completed=len(own),
                num_failed=_num_failed(point),
                num_open=spec.replicas - sum(trial.finished_at_ms is not None for trial in point.replicas),
                mean=statistics.fmean(own.values()) if own else None,
                standard_deviation=statistics.stdev(own.values()) if len(own) > 1 else None,
                low=low,
                high=high,
                differences=tuple(
                    paired
                    for baseline in baselines
                    if baseline.record.number != record.number
                    and (paired := _paired(own, baseline, values[baseline.record.number])) is not None
                ),
                violations=violations(spec.objective, record, known),
            )
        )
    return tuple(found)


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The interval of a normal sample's mean, mean -+ t s / sqrt(n) with n - 1 degrees of freedom; None below 2."""
    if len(values) < 2:
        return None, None
    mean = statistics.fmean(values)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def t_quantile(degrees: int) -> float:
    """The two-sided quantile of Student's t distribution at 95 %: 12.706 for one degree of freedom, 1.96 for many."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))


def _by_seed(point: Point) -> dict[int, float]:
    """Replica -> objective, of those that trained their whole budget."""
    return {
        trial.replica: trial.objective
        for trial in point.replicas
        if trial.replica is not None and trial.state is TrialState.COMPLETED and trial.objective is not None
    }


def _num_failed(point: Point) -> int:
    return sum(trial.state in (TrialState.FAILED, TrialState.INFEASIBLE) for trial in point.replicas)


def _paired(own: dict[int, float], baseline: Point, theirs: dict[int, float]) -> PairedDifference | None:
    shared = sorted(own.keys() & theirs.keys())
    if not shared:
        return None
    differences = [own[replica] - theirs[replica] for replica in shared]
    low, high = interval(differences)
    return PairedDifference(
        baseline_point=baseline.record.number,
        baseline_label=baseline.record.label or f"point {baseline.record.number}",
        num_pairs=len(shared),
        value=statistics.fmean(differences),
        low=low,
        high=high,
        within_noise=None if low is None or high is None else low <= 0 <= high,
    )
