"""What lists of experiments and trials show beside the rows themselves, a page at a time and never row by row."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, case, func, select

from orchestrator.states import RunState, TrialState
from orchestrator.store.models import ExperimentRow, RunRow, TrialRow
from orchestrator.store.records import TrialKind

_LIVE = (RunState.STARTING.value, RunState.RUNNING.value)
_OPEN = (TrialState.QUEUED.value, TrialState.RUNNING.value, TrialState.RETRYING.value)
_ENDED_BY_TRAINING = (TrialState.COMPLETED.value, TrialState.PRUNED.value)


@dataclass(frozen=True, kw_only=True)
class NewestRun:
    """The newest run of a trial, and how many there were."""

    run_id: str
    is_live: bool
    progress: dict[str, Any] | None
    num_runs: int


@dataclass(frozen=True, kw_only=True)
class Best:
    """The completed trial of a search with the best objective."""

    trial_id: str
    number: int
    objective: float
    objective_tokens: int | None
    params: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The first baseline of an experiment that completed with an objective."""

    trial_id: str
    label: str | None
    objective: float


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast an experiment's trials go.

    Attributes:
        live: progress of each live run (None: it has not reported yet).
        num_waiting: trials that are neither running nor over.
        mean_duration_s: wall time from start to end of the trials that completed or were pruned; None without any.
    """

    live: tuple[dict[str, Any] | None, ...]
    num_waiting: int
    mean_duration_s: float | None


def newest_runs(connection: Connection, trial_ids: Collection[str]) -> dict[str, NewestRun]:
    """Trial id -> its newest run, for those of `trial_ids` that have one."""
    if not trial_ids:
        return {}
    newest = (
        select(RunRow.trial_id, func.max(RunRow.number).label("number"), func.count().label("num_runs"))
        .where(RunRow.trial_id.in_(trial_ids))
        .group_by(RunRow.trial_id)
        .subquery()
    )
    rows = connection.execute(
        select(RunRow.trial_id, RunRow.id, RunRow.state, RunRow.progress, newest.c.num_runs).join(
            newest, and_(RunRow.trial_id == newest.c.trial_id, RunRow.number == newest.c.number)
        )
    )
    return {
        row.trial_id: NewestRun(run_id=row.id, is_live=row.state in _LIVE, progress=row.progress, num_runs=row.num_runs)
        for row in rows
    }


def num_spikes(connection: Connection, experiment_ids: Collection[str]) -> dict[str, int]:
    """Experiment id -> spikes over the newest runs of its trials."""
    counts = dict.fromkeys(experiment_ids, 0)
    if not counts:
        return counts
    newest = (
        select(RunRow.trial_id, func.max(RunRow.number).label("number"))
        .join(TrialRow, TrialRow.id == RunRow.trial_id)
        .where(TrialRow.experiment_id.in_(counts))
        .group_by(RunRow.trial_id)
        .subquery()
    )
    spikes = func.coalesce(func.sum(RunRow.progress["num_spikes"].as_integer()), 0)
    rows = connection.execute(
        select(TrialRow.experiment_id, spikes)
        .join(RunRow, RunRow.trial_id == TrialRow.id)
        .join(newest, and_(RunRow.trial_id == newest.c.trial_id, RunRow.number == newest.c.number))
        .group_by(TrialRow.experiment_id)
    )
    return counts | {experiment_id: int(count) for experiment_id, count in rows}


def best_trials(connection: Connection, maximize: Mapping[str, bool]) -> dict[str, Best]:
    """Experiment id -> its best completed search trial by the first objective without a veto; the earlier of equals.

    Args:
        maximize: experiment id -> whether a larger objective is better.
    """
    best: dict[str, Best] = {}
    for larger_is_better in (False, True):
        ids = [experiment_id for experiment_id, larger in maximize.items() if larger is larger_is_better]
        order = TrialRow.objective.desc() if larger_is_better else TrialRow.objective.asc()
        ranked = (
            select(
                TrialRow.id,
                func.row_number()
                .over(partition_by=TrialRow.experiment_id, order_by=(order, TrialRow.number))
                .label("place"),
            )
            .where(
                TrialRow.experiment_id.in_(ids),
                TrialRow.kind != TrialKind.BASELINE.value,
                TrialRow.state == TrialState.COMPLETED.value,
                TrialRow.objective.is_not(None),
                TrialRow.veto.is_(None),
            )
            .subquery()
        )
        rows = connection.execute(
            select(
                TrialRow.experiment_id,
                TrialRow.id,
                TrialRow.number,
                TrialRow.objective,
                TrialRow.objective_tokens,
                TrialRow.params,
            )
            .join(ranked, ranked.c.id == TrialRow.id)
            .where(ranked.c.place == 1)
        )
        for row in rows:
            best[row.experiment_id] = Best(
                trial_id=row.id,
                number=row.number,
                objective=row.objective,
                objective_tokens=row.objective_tokens,
                params=row.params,
            )
    return best


def best_points(
    connection: Connection, maximize: Mapping[str, bool], num_replicas: Mapping[str, int]
) -> dict[str, Best]:
    """Experiment id -> its best point by the mean over its seeds, of those with all of them; as its first trial.

    Args:
        maximize: experiment id -> whether a larger objective is better.
        num_replicas: of the same experiments: how many seeds every point has.
    """
    mean = func.avg(TrialRow.objective)
    rows = connection.execute(
        select(
            TrialRow.experiment_id,
            TrialRow.point,
            func.count().label("num_completed"),
            mean.label("mean"),
            func.min(TrialRow.number).label("number"),
        )
        .where(
            TrialRow.experiment_id.in_(maximize),
            TrialRow.kind == TrialKind.SEARCH.value,
            TrialRow.point.is_not(None),
            TrialRow.state == TrialState.COMPLETED.value,
            TrialRow.objective.is_not(None),
            TrialRow.veto.is_(None),
        )
        .group_by(TrialRow.experiment_id, TrialRow.point)
    )
    found: dict[str, tuple[float, int, float]] = {}
    for row in rows:
        if row.num_completed == num_replicas[row.experiment_id]:
            place = (-row.mean if maximize[row.experiment_id] else row.mean, row.number, row.mean)
            found[row.experiment_id] = min(place, found.get(row.experiment_id, place))
    best: dict[str, Best] = {}
    for experiment_id, (_, number, objective) in found.items():
        trial = connection.execute(
            select(TrialRow.id, TrialRow.objective_tokens, TrialRow.params).where(
                TrialRow.experiment_id == experiment_id, TrialRow.number == number
            )
        ).one()
        best[experiment_id] = Best(
            trial_id=trial.id,
            number=number,
            objective=objective,
            objective_tokens=trial.objective_tokens,
            params=trial.params,
        )
    return best


def references(connection: Connection, experiment_ids: Collection[str]) -> dict[str, Reference]:
    """Experiment id -> what its trials are compared with: its first completed baseline, where there is one."""
    rows = connection.execute(
        select(TrialRow.experiment_id, TrialRow.id, TrialRow.label, TrialRow.objective)
        .where(
            TrialRow.experiment_id.in_(experiment_ids),
            TrialRow.kind == TrialKind.BASELINE.value,
            TrialRow.state == TrialState.COMPLETED.value,
        )
        .order_by(TrialRow.number)
    )
    found: dict[str, Reference] = {}
    for row in rows:
        if row.objective is not None and row.experiment_id not in found:
            found[row.experiment_id] = Reference(trial_id=row.id, label=row.label, objective=row.objective)
    return found


def most_dead(connection: Connection, experiment_ids: Collection[str]) -> dict[str, float]:
    """Experiment id -> largest fraction of dead experts in any layer of any trial that has ended with figures of it."""
    fraction = TrialRow.summary["max_dead_fraction"].as_float()
    rows = connection.execute(
        select(TrialRow.experiment_id, func.max(fraction))
        .where(TrialRow.experiment_id.in_(experiment_ids), TrialRow.summary.is_not(None))
        .group_by(TrialRow.experiment_id)
    )
    return {experiment_id: float(worst) for experiment_id, worst in rows if worst is not None}


def recent_summaries(connection: Connection, *, limit: int = 50) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Resources and RunSummary of the newest completed trials of this installation."""
    rows = connection.execute(
        select(ExperimentRow.spec, TrialRow.summary)
        .join(ExperimentRow, ExperimentRow.id == TrialRow.experiment_id)
        .where(TrialRow.state == TrialState.COMPLETED.value, TrialRow.summary.is_not(None))
        .order_by(TrialRow.finished_at_ms.desc())
        .limit(limit)
    )
    return [(row.spec["resources"], row.summary) for row in rows if row.summary is not None]


def paces(connection: Connection, experiment_ids: Collection[str]) -> dict[str, Pace]:
    """Experiment id -> how fast its trials go."""
    live: dict[str, list[dict[str, Any] | None]] = {experiment_id: [] for experiment_id in experiment_ids}
    if not live:
        return {}
    for experiment_id, progress in connection.execute(
        select(TrialRow.experiment_id, RunRow.progress)
        .join(TrialRow, TrialRow.id == RunRow.trial_id)
        .where(TrialRow.experiment_id.in_(live), RunRow.state.in_(_LIVE))
    ):
        live[experiment_id].append(progress)
    num_open: dict[str, int] = {}
    mean_ms: dict[str, float] = {}
    ended = TrialRow.state.in_(_ENDED_BY_TRAINING)
    for experiment_id, count, mean in connection.execute(
        select(
            TrialRow.experiment_id,
            func.count(case((TrialRow.state.in_(_OPEN), 1))),
            func.avg(case((ended, TrialRow.finished_at_ms - TrialRow.started_at_ms))),
        )
        .where(TrialRow.experiment_id.in_(live))
        .group_by(TrialRow.experiment_id)
    ):
        num_open[experiment_id] = count
        if mean is not None:
            mean_ms[experiment_id] = float(mean)
    return {
        experiment_id: Pace(
            live=tuple(progress),
            num_waiting=max(0, num_open.get(experiment_id, 0) - len(progress)),
            mean_duration_s=mean_ms[experiment_id] / 1000 if experiment_id in mean_ms else None,
        )
        for experiment_id, progress in live.items()
    }
