"""Promotion: which paused trial a free place goes to. Pure functions of the rows and of who runs.

Source: Li et al. 2020, arXiv:1810.05934, algorithm 2 (`get_job`): of the highest rung where one of the best
1/reduction_factor of those that have arrived was not promoted yet, the best such trial; else a new one. A decision is
recorded when a trial is promoted, or when the search has ended without it.
"""

from collections.abc import Collection, Sequence

from orchestrator.schedulers import HalvingSection, HyperbandScheduler
from orchestrator.search.points import Point, is_paused, points_of
from orchestrator.search.stop import Decision, RungDecision, bracket_of, cost_of
from orchestrator.search.waiting import Verdict, on_point, promotes
from orchestrator.spec import ExperimentSpec
from orchestrator.states import TrialState
from orchestrator.store.records import RungRecord, TrialKind, TrialRecord


def promoted(
    spec: ExperimentSpec, history: Sequence[TrialRecord], *, live: Collection[str], is_last: bool = False
) -> list[Verdict]:
    """The trial that a free place goes to, as decisions to go on (one per replica of its point); [] if none may.

    A trial may if it is among the best `floor(n / reduction_factor)` of the `n` that have arrived at its rung, of its
    bracket with Hyperband. Equal values: the lower number first.

    Args:
        live: ids of the trials that have a run; they are not promoted before it has ended.
        is_last: nothing runs and nothing new comes. The best trial of the highest rung is promoted then even if it is
            one of too few, where no other of its bracket has completed: a search ends with a trial that trained its
            whole budget.
    """
    if not promotes(spec):
        return []
    groups = _groups(spec, history)
    found: list[tuple[int, float, int, Point, str]] = []
    for where, points in groups:
        for rung in {point.record.rungs[-1].rung for point in points if is_paused(point.record)}:
            ranked = _ranked(spec, points, rung)
            num_kept = len(ranked) // _factor(spec)
            for rank, (point, record) in enumerate(ranked[:num_kept], start=1):
                if _may_go_on(point, record, live):
                    sentence = (
                        f"rank {rank} of {len(ranked)} at rung {rung}{where} with {record.value:.4f}; the best "
                        f"{num_kept} are promoted"
                    )
                    found.append((-rung, cost_of(spec, record.value), point.record.number, point, sentence))
                    break
    if not found and is_last:
        found = [last for where, points in groups if (last := _last_of(spec, points, where, live)) is not None]
    if not found:
        return []
    negative_rung, _, _, point, sentence = min(found, key=lambda one: one[:3])
    return on_point(point, -negative_rung, Decision(decision=RungDecision.CONTINUE, explanation=sentence))


def never_promoted(spec: ExperimentSpec, history: Sequence[TrialRecord]) -> list[Verdict]:
    """The decisions to stop, for all that still wait when the search has ended without them."""
    if not promotes(spec):
        return []
    found: list[Verdict] = []
    for where, points in _groups(spec, history):
        ranks: dict[int, dict[int, int]] = {}
        for point in points:
            if is_paused(point.record):
                rung = point.record.rungs[-1].rung
                if rung not in ranks:
                    ranked = _ranked(spec, points, rung)
                    ranks[rung] = {other.record.number: rank for rank, (other, _) in enumerate(ranked, start=1)}
                rank = f"rank {ranks[rung][point.record.number]} of {len(ranks[rung])} at rung {rung}{where}"
                sentence = f"{rank}; the search ended without promoting it"
                found += on_point(point, rung, Decision(decision=RungDecision.STOP, explanation=sentence))
    return found


def _groups(spec: ExperimentSpec, history: Sequence[TrialRecord]) -> list[tuple[str, list[Point]]]:
    """The points that are compared with each other, and in words which."""
    points = [point for point in points_of(spec, history) if point.record.kind is TrialKind.SEARCH]
    scheduler = spec.scheduler
    if not isinstance(scheduler, HyperbandScheduler):
        return [("", points)]
    return [
        (f" of bracket {bracket}", [p for p in points if bracket_of(spec, scheduler, p.record.number) == bracket])
        for bracket in range(scheduler.num_brackets)
    ]


def _ranked(spec: ExperimentSpec, points: Sequence[Point], rung: int) -> list[tuple[Point, RungRecord]]:
    """The points that have arrived at a rung, with what they had there, best first."""
    there = [(point, record) for point in points for record in point.record.rungs if record.rung == rung]
    return sorted(there, key=lambda one: (cost_of(spec, one[1].value), one[0].record.number))


def _last_of(
    spec: ExperimentSpec, points: Sequence[Point], where: str, live: Collection[str]
) -> tuple[int, float, int, Point, str] | None:
    if any(point.record.state is TrialState.COMPLETED for point in points):
        return None
    waiting = [
        (-record.rung, cost_of(spec, record.value), point.record.number, point)
        for point in points
        if is_paused(point.record) and _may_go_on(point, record := point.record.rungs[-1], live)
    ]
    if not waiting:
        return None
    negative_rung, cost, number, point = min(waiting, key=lambda one: one[:3])
    sentence = f"the best at rung {-negative_rung}{where}, promoted because nothing more comes and none has completed"
    return negative_rung, cost, number, point, sentence


def _may_go_on(point: Point, record: RungRecord, live: Collection[str]) -> bool:
    has_run = any(trial.id in live for trial in point.replicas)
    return record.decision is None and record.value is not None and is_paused(point.record) and not has_run


def _factor(spec: ExperimentSpec) -> int:
    assert isinstance(spec.scheduler, HalvingSection)
    return spec.scheduler.reduction_factor
