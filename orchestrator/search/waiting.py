"""Where trials wait at rungs, and what becomes of them when the rows settle it: pure functions.

A trial that waits has ended its run with a checkpoint; its rung has no decision yet. So it is in a synchronous
experiment until its batch has arrived, in one with replicas until its point has, and under population-based training
until the population has. Under promotion it waits until a place is free: see `orchestrator.search.promote`.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.schedulers import HalvingSection, HyperbandScheduler, NoScheduler, PBTScheduler
from orchestrator.search.points import Point, is_paused, points_of
from orchestrator.search.rungs import num_rungs_before_start, rung_tokens
from orchestrator.search.stop import Arrived, Decision, RungDecision, bracket_of, decide, decide_among, decide_batch
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, TrialState
from orchestrator.store.records import RungRecord, TrialKind, TrialRecord
from trainer.config import TrainConfig


class Verdict(NamedTuple):
    """What was decided on a trial that waits at a rung."""

    trial_id: str
    rung: int
    decision: Decision


def waits_at_rungs(spec: ExperimentSpec) -> bool:
    """Whether runs of the search end at rungs, and their trials wait there for a decision."""
    scheduler = spec.scheduler
    if isinstance(scheduler, NoScheduler):
        return False
    return spec.synchronous or spec.replicas > 1 or promotes(spec) or isinstance(scheduler, PBTScheduler)


def promotes(spec: ExperimentSpec) -> bool:
    """Whether trials wait for a free place, and the best of them get it."""
    return not spec.synchronous and isinstance(spec.scheduler, HalvingSection) and spec.scheduler.mode == "promote"


def next_wait(spec: ExperimentSpec, trial: TrialRecord, config: TrainConfig, rungs: Sequence[float]) -> int | None:
    """The rung at which the trial's next run is to end; None if it is to run on.

    Args:
        config: the trial's.
        rungs: where they are, in tokens or seconds.
    """
    if trial.kind is not TrialKind.SEARCH or not waits_at_rungs(spec):
        return None
    passed = trial.rungs[-1].rung + 1 if trial.rungs else 0
    if isinstance(spec.scheduler, HyperbandScheduler) and not spec.synchronous:
        passed = max(passed, bracket_of(spec, spec.scheduler, _number(trial)))
    if not isinstance(spec.scheduler, NoScheduler) and spec.scheduler.resource != "seconds":
        passed = max(passed, num_rungs_before_start(config, rungs))
    return passed if passed < len(rungs) else None


def on_arrival(
    spec: ExperimentSpec, trial: TrialRecord, rung: int, value: float | None, earlier: Sequence[RungRecord]
) -> Decision | None:
    """What is decided as a trial of the search arrives at a rung; None if it is to wait.

    Args:
        earlier: the arrivals of search trials at this rung before it.
    """
    if spec.synchronous:
        return None
    if not waits_at_rungs(spec):
        return decide(spec, rung, value, earlier, number=trial.number, own=trial.rungs)
    scheduler = spec.scheduler
    if trial.parent_trial_id is not None and rung < _num_inherited(spec, trial):
        sentence = "reached by the trial that it goes on from"
        return Decision(decision=RungDecision.CONTINUE, explanation=sentence)
    if isinstance(scheduler, PBTScheduler):
        return None
    if value is None or not math.isfinite(value):
        sentence = f"{spec.objective.metric} at rung {rung} was not a finite number"
        return Decision(decision=RungDecision.STOP, explanation=sentence)
    if isinstance(scheduler, HyperbandScheduler) and rung < (bracket := bracket_of(spec, scheduler, _number(trial))):
        sentence = f"bracket {bracket} of {scheduler.num_brackets} is first judged at rung {bracket}"
        return Decision(decision=RungDecision.CONTINUE, explanation=sentence)
    return None


def waiting_reason(spec: ExperimentSpec, trial: TrialRecord) -> str:
    """Why a trial whose run has ended at a rung does not run, in words."""
    if not is_paused(trial):
        return "waiting for a free place in the cluster"
    what = "for the other trials of its batch"
    if promotes(spec):
        what = "to be among the best that are promoted"
    elif isinstance(spec.scheduler, PBTScheduler):
        what = "for the rest of the population"
    elif not spec.synchronous:
        what = "for the other seeds of its point"
    return f"paused at rung {trial.rungs[-1].rung}, waiting {what}"


def due(spec: ExperimentSpec, history: Sequence[TrialRecord]) -> list[Verdict]:
    """What the rows settle of the trials that wait: of batches, and of points, that have arrived as a whole.

    Nothing where they wait for a place or for the population.
    """
    if not waits_at_rungs(spec) or promotes(spec) or isinstance(spec.scheduler, PBTScheduler):
        return []
    points = [point for point in points_of(spec, history) if point.record.kind is TrialKind.SEARCH]
    waiting = [point for point in points if is_paused(point.record)]
    found: list[Verdict] = []
    if spec.synchronous:
        for batch, rung in sorted({(point.record.batch or 0, point.record.rungs[-1].rung) for point in waiting}):
            found += _of_batch(spec, [point for point in points if point.record.batch == batch], rung)
        return found
    arrivals: dict[int, list[RungRecord]] = defaultdict(list)
    for point in points:
        for record in point.record.rungs:
            arrivals[record.rung].append(record)
    for records in arrivals.values():
        records.sort(key=lambda record: record.sequence, reverse=True)
    arrived: dict[int, Arrived] = defaultdict(lambda: Arrived(spec))
    for point in sorted(waiting, key=lambda point: point.record.rungs[-1].sequence):
        here = point.record.rungs[-1]
        # Those that wait are taken in their order of arrival, so each rung's earlier arrivals only become more.
        while arrivals[here.rung][-1].sequence < here.sequence:
            arrived[here.rung].add(arrivals[here.rung].pop())
        number, own = point.record.number, point.record.rungs[:-1]
        decision = decide_among(spec, here.rung, here.value, arrived[here.rung], number=number, own=own)
        found += on_point(point, here.rung, decision)
    return found


def on_point(point: Point, rung: int, decision: Decision) -> list[Verdict]:
    """A decision on a point, for each of its replicas that has none there."""
    return [
        Verdict(trial.id, rung, decision)
        for trial in point.replicas
        for record in trial.rungs
        if record.rung == rung and record.decision is None
    ]


def _of_batch(spec: ExperimentSpec, batch: Sequence[Point], rung: int) -> list[Verdict]:
    """The decisions on a batch at a rung; none while a point of it that lives has not arrived, or decided before."""
    arrived = [record for point in batch for record in point.record.rungs if record.rung == rung]
    there = {record.trial_id for record in arrived}
    if any(record.decision is not None for record in arrived):
        return []
    if any(point.record.finished_at_ms is None and point.record.id not in there for point in batch):
        return []
    scheduler = spec.scheduler
    failed = [point.record.number for point in batch if _failed_before(point.record, rung)]
    num_failed = Counter(
        bracket_of(spec, scheduler, number) if isinstance(scheduler, HyperbandScheduler) else 0 for number in failed
    )
    decisions = decide_batch(spec, rung, arrived, num_failed)
    return [
        verdict
        for point in batch
        if point.record.id in there
        for verdict in on_point(point, rung, decisions[point.record.id])
    ]


def _failed_before(trial: TrialRecord, rung: int) -> bool:
    """True if the trial failed by itself after it was let through the rung before `rung`, and did not reach `rung`."""
    ended = trial.state in (TrialState.FAILED, TrialState.INFEASIBLE) or trial.cause is Cause.STOP_RULE
    return ended and trial.cause is not Cause.RETRIES_EXHAUSTED and len(trial.rungs) == rung


def _num_inherited(spec: ExperimentSpec, trial: TrialRecord) -> int:
    config = TrainConfig.model_validate(trial.config)
    return num_rungs_before_start(config, rung_tokens(spec, config))


def _number(trial: TrialRecord) -> int:
    return trial.number if trial.point is None else trial.point
