"""Points: what the search decides on where every configuration is tried with several seeds.

Sampler and scheduler see a point as one trial: its number is the point's, its value at a rung the mean over its
replicas. With one seed a point is its trial.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.search.draw import derived_seed
from orchestrator.spec import ExperimentSpec
from orchestrator.states import TrialState
from orchestrator.store.records import RungDecision, RungRecord, TrialKind, TrialRecord
from trainer.config import TrainConfig

_RESULTS = (TrialState.COMPLETED, TrialState.PRUNED, TrialState.FAILED, TrialState.INFEASIBLE, TrialState.CANCELLED)
"""What a point came to whose replicas ended differently: the first of these that one of them has."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A configuration but for its seed.

    Attributes:
        record: the point as one trial. Its id is that of its first replica.
        replicas: its trials, by number.
    """

    record: TrialRecord
    replicas: tuple[TrialRecord, ...]


def points_of(spec: ExperimentSpec, history: Sequence[TrialRecord]) -> tuple[Point, ...]:
    """The points of an experiment in order of number, baselines first.

    Trials that were added by hand are none, and neither are those of a warm start, which have negative numbers.
    """
    trials = sorted(
        (trial for trial in history if trial.kind is not TrialKind.ADDED and trial.number >= 0),
        key=lambda trial: trial.number,
    )
    if spec.replicas == 1:
        return tuple(Point(record=trial, replicas=(trial,)) for trial in trials)
    by_point: dict[int, list[TrialRecord]] = defaultdict(list)
    for trial in trials:
        assert trial.point is not None, "every trial of an experiment with replicas is of a point"
        by_point[trial.point].append(trial)
    return tuple(
        Point(record=_joined(spec, number, by_point[number]), replicas=tuple(by_point[number]))
        for number in sorted(by_point)
    )


def as_trials(spec: ExperimentSpec, history: Sequence[TrialRecord]) -> tuple[TrialRecord, ...]:
    """The points as trials: what a sampler is told, and what batches are counted in. A warm start's trials are kept."""
    if spec.replicas == 1:
        return tuple(history)
    past = [trial for trial in history if trial.number < 0]
    return (*past, *(point.record for point in points_of(spec, history)))


def replica_config(config: TrainConfig, replica: int) -> TrainConfig:
    """The configuration of one of a point's replicas; the first has the seed of `config` itself.

    The others' seeds are derived from that one and their place alone, so that all points have the same, and the
    differences between two points are those of pairs.
    """
    if replica == 0:
        return config
    seed = derived_seed(config.seed, "replica", replica) % 2**31
    return config.model_copy(update={"seed": seed})


def is_paused(trial: TrialRecord) -> bool:
    """True if the trial (or point) waits at a rung for what becomes of it."""
    return trial.finished_at_ms is None and bool(trial.rungs) and trial.rungs[-1].decision is None


def _joined(spec: ExperimentSpec, number: int, replicas: Sequence[TrialRecord]) -> TrialRecord:
    """A point as one trial. It has arrived at a rung when all of its replicas that live have."""
    first = replicas[0]
    is_over = len(replicas) == spec.replicas and all(trial.finished_at_ms is not None for trial in replicas)
    rungs = tuple(_rungs(spec, number, replicas))
    if not is_over:
        open_ones = [trial for trial in replicas if trial.finished_at_ms is None]
        state = open_ones[0].state if open_ones else TrialState.QUEUED
        nothing_yet: dict[str, Any] = {"cause": None, "objective": None, "summary": None, "finished_at_ms": None}
        return replace(first, number=number, state=state, rungs=rungs, **nothing_yet)
    state = next(state for state in _RESULTS if any(trial.state is state for trial in replicas))
    decisive = [trial for trial in replicas if trial.state is state]
    values = [trial.objective for trial in decisive if trial.objective is not None]
    further = [trial.further_values for trial in decisive if trial.further_values is not None]
    return replace(
        first,
        number=number,
        state=state,
        further_values=[_mean(column) for column in zip(*further, strict=True)] if further else None,
        cause=decisive[0].cause,
        reason=decisive[0].reason,
        objective=statistics.fmean(values) if values else None,
        objective_tokens=max((trial.objective_tokens or 0 for trial in decisive), default=None),
        summary=_mean_summary([trial.summary for trial in decisive if trial.summary is not None]),
        finished_sequence=max(trial.finished_sequence or 0 for trial in replicas),
        finished_at_ms=max(trial.finished_at_ms or 0 for trial in replicas),
        rungs=rungs,
    )


def _rungs(spec: ExperimentSpec, number: int, replicas: Sequence[TrialRecord]) -> list[RungRecord]:
    found: list[RungRecord] = []
    if len(replicas) < spec.replicas:
        return found
    for rung in sorted({record.rung for trial in replicas for record in trial.rungs}):
        records: list[RungRecord] = []
        sequences: list[int] = []
        for trial in replicas:
            there = [record for record in trial.rungs if record.rung == rung]
            if not there and trial.finished_at_ms is None:
                return found
            records += there
            sequences.append(there[0].sequence if there else trial.finished_sequence or 0)
        values = [record.value for record in records if record.value is not None and math.isfinite(record.value)]
        decided = max(records, key=_how_far)
        found.append(
            replace(
                decided,
                trial_id=replicas[0].id,
                trial_number=number,
                rung=rung,
                tokens=max(record.tokens for record in records),
                value=statistics.fmean(values) if values else None,
                sequence=max(sequences),
                at_ms=max(record.at_ms for record in records),
            )
        )
    return found


def _how_far(record: RungRecord) -> int:
    """The decision on a point is that on its replicas but for those that had no finite value, which ended there."""
    return 2 if record.decision is RungDecision.CONTINUE else 1 if record.decision is None else 0


def _mean_summary(summaries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The mean of every figure that all have; what is no number is that of the first."""
    if not summaries:
        return None
    joined = dict(summaries[0])
    for name, value in joined.items():
        others = [summary.get(name) for summary in summaries]
        if isinstance(value, dict):
            joined[name] = {key: _mean([(other or {}).get(key) for other in others]) for key in value}
        elif isinstance(value, float | int) and not isinstance(value, bool):
            joined[name] = _mean(others)
    return joined


def _mean(values: Sequence[Any]) -> Any:
    numbers = [value for value in values if isinstance(value, float | int) and not isinstance(value, bool)]
    return statistics.fmean(numbers) if len(numbers) == len(values) else values[0]
