"""Turns the store's records into wire types."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from api.schemas.experiments import BaselineBest, BestTrial, ExperimentDetail, ExperimentSummary, TrialCounts
from api.schemas.search import SkippedTrials, WarmStartRead
from api.schemas.trials import CheckpointRead, ForkRead, Progress, RungRead, RunRead, TrialDetail, TrialRead
from api.waiting import experiment_reason, trial_reason
from orchestrator.search.grid import num_search_trials
from orchestrator.search.rungs import rung_tokens
from orchestrator.search.warm_start import WarmStart
from orchestrator.spec import ExperimentSpec, Objective
from orchestrator.states import TrialState, is_terminal
from orchestrator.store.overview import (
    Best,
    NewestRun,
    Pace,
    best_points,
    best_trials,
    most_dead,
    newest_runs,
    num_spikes,
    paces,
    references,
)
from orchestrator.store.records import ExperimentRecord, ForkRecord, RunRecord, TrialRecord
from orchestrator.store.work import Work
from trainer.config import TrainConfig
from trainer.config.run import RunSummary


def experiment_summaries(work: Work, records: Sequence[ExperimentRecord]) -> list[ExperimentSummary]:
    """The rows of a list of experiments, in the order of `records`."""
    return [ExperimentSummary(**fields) for fields in _summaries(work, records)]


def experiment_detail(work: Work, record: ExperimentRecord) -> ExperimentDetail:
    """One experiment with its documents."""
    spec = ExperimentSpec.model_validate(record.spec)
    return ExperimentDetail(
        **_summaries(work, [record])[0],
        description=spec.description,
        document=record.document,
        spec=record.spec,
        spec_version=record.spec_version,
        warm_start=None if (warm := work.warm_starts.of_experiment(record.id)) is None else warm_start_read(warm),
        warnings=list(record.warnings),
        rung_tokens=list(rung_tokens(spec)),
        mlflow_url=mlflow_url(work, record.mlflow_experiment_id),
        fork=None if (fork := work.forks.of_experiment(record.id)) is None else fork_read(work, fork),
    )


def warm_start_read(warm: WarmStart) -> WarmStartRead:
    """A warm start, counted."""
    return WarmStartRead(
        num_used=len(warm.trials),
        used=dict(Counter(trial.experiment_id for trial in warm.trials)),
        skipped=[SkippedTrials(**vars(skipped)) for skipped in warm.skipped],
    )


def fork_read(work: Work, record: ForkRecord) -> ForkRead:
    """A fork, with the names of both experiments."""
    fork = work.experiments.get(record.experiment_id)
    return ForkRead(
        **vars(record),
        name=fork.name,
        state=fork.state,
        parent_name=work.experiments.get(record.parent_experiment_id).name,
        trial_number=work.trials.get(record.trial_id).number,
    )


def checkpoint_rows(work: Work, trial_id: str) -> list[CheckpointRead]:
    """The checkpoints that a trial keeps, fewest tokens first."""
    pinned = work.forks.pinned(trial_id)
    return [
        CheckpointRead(
            id=record.id,
            trial_id=record.trial_id,
            run_id=record.run_id,
            step=record.step,
            tokens=record.tokens,
            objective=record.objective,
            is_pinned=record.id in pinned,
            at_ms=record.at_ms,
        )
        for record in work.checkpoints.of_trial(trial_id)
    ]


def mlflow_url(work: Work, experiment_id: str | None, run_id: str | None = None) -> str | None:
    """The page of an experiment, or of a run of it, in the MLflow UI; None while there is none."""
    service = work.services.get("mlflow")
    if service is None or service.url is None or experiment_id is None:
        return None
    page = f"{service.url.rstrip('/')}/#/experiments/{experiment_id}/runs"
    # MLflow's page has two sides, and opens on that for applications of language models if it is not told.
    return f"{page if run_id is None else f'{page}/{run_id}'}?workflowType=machine_learning"


def trial_rows(work: Work, records: Sequence[TrialRecord]) -> list[TrialRead]:
    """The rows of a table of trials, in the order of `records`."""
    return [TrialRead(**fields) for fields in _trials(work, records)]


def trial_detail(work: Work, record: TrialRecord) -> TrialDetail:
    """One trial with its configuration."""
    experiment = work.experiments.get(record.experiment_id)
    tracking = work.tracking.get(record.id)
    run_id = None if tracking is None else tracking.mlflow_run_id
    return TrialDetail(
        **_trials(work, [record])[0],
        config=record.config,
        config_fingerprint=record.config_fingerprint,
        layer_kinds=[] if record.config is None else _layer_kinds(record.config),
        mlflow_run_url=None if run_id is None else mlflow_url(work, experiment.mlflow_experiment_id, run_id),
    )


def run_rows(records: Iterable[RunRecord]) -> list[RunRead]:
    """Runs in the order of `records`."""
    return [
        RunRead(
            id=record.id,
            trial_id=record.trial_id,
            trial_number=record.trial_number,
            number=record.number,
            state=record.state,
            cause=record.cause,
            reason=record.reason,
            since_ms=record.since_ms,
            resumed_from_step=record.resumed_from_step,
            stop_at_tokens=record.stop_at_tokens,
            progress=_progress(record.progress),
            environment=record.environment,
            created_at_ms=record.created_at_ms,
            started_at_ms=record.started_at_ms,
            finished_at_ms=record.finished_at_ms,
        )
        for record in records
    ]


def remaining_s(pace: Pace, *, num_trials: int, num_proposed: int) -> float | None:
    """Seconds until all planned trials are over, if trials go on as they did.

    What live runs say they still need, plus the mean duration so far for every trial that has not started, shared
    among as many trials as run now; at least what the slowest live run needs. None if nothing has told its pace yet.
    """
    known = [progress["eta_s"] for progress in pace.live if progress and progress.get("eta_s") is not None]
    num_waiting = pace.num_waiting + max(0, num_trials - num_proposed)
    if pace.mean_duration_s is None and not known:
        return None
    # Before the first trial is over, one that starts is taken to need as long as a live one in all.
    whole = [progress["eta_s"] / _share_left(progress) for progress in pace.live if progress and progress.get("eta_s")]
    each = pace.mean_duration_s or (sum(whole) / len(whole) if whole else 0.0)
    unknown = len(pace.live) - len(known)
    work_s = sum(known) + (num_waiting + unknown) * each
    return max([work_s / max(1, len(pace.live)), *known])


def _share_left(progress: Mapping[str, Any]) -> float:
    budget = progress.get("budget_tokens") or 1
    return max(0.01, 1 - (progress.get("tokens") or 0) / budget)


def _summaries(work: Work, records: Sequence[ExperimentRecord]) -> list[dict[str, Any]]:
    objectives = {record.id: Objective.model_validate(record.spec["objective"]) for record in records}
    maximize = {key: objective.direction == "maximize" for key, objective in objectives.items()}
    # A spec of an older release does not say: its points have one seed.
    replicas = {record.id: seeds for record in records if (seeds := record.spec.get("replicas", 1)) > 1}
    best = best_trials(work.connection, {key: value for key, value in maximize.items() if key not in replicas})
    if replicas:
        best |= best_points(work.connection, {key: maximize[key] for key in replicas}, replicas)
    ids = [record.id for record in records]
    spikes = num_spikes(work.connection, ids)
    baselines = references(work.connection, ids)
    dead = most_dead(work.connection, ids)
    pace = paces(work.connection, [record.id for record in records if not is_terminal(record.state)])
    waits = any(not is_terminal(record.state) for record in records)
    standings = work.queue.standings() if waits else None
    rows: list[dict[str, Any]] = []
    for record in records:
        spec = ExperimentSpec.model_validate(record.spec)
        num_proposed = sum(record.trial_counts.values())
        num_trials = max((num_search_trials(spec) + len(spec.baselines)) * spec.replicas, num_proposed)
        eta_s = None
        if not is_terminal(record.state):
            eta_s = remaining_s(pace[record.id], num_trials=num_trials, num_proposed=num_proposed)
        rows.append(
            {
                "id": record.id,
                "name": record.name,
                "state": record.state,
                "reason": record.reason if standings is None else experiment_reason(record, standings),
                "since_ms": record.since_ms,
                "owner": record.owner,
                "priority": record.priority,
                "stop_within_s": record.stop_within_s,
                "created_at_ms": record.created_at_ms,
                "finished_at_ms": record.finished_at_ms,
                "objective": objectives[record.id],
                "further_objectives": list(spec.further_objectives),
                "num_trials": num_trials,
                "trial_counts": TrialCounts(**{state.value: record.trial_counts.get(state, 0) for state in TrialState}),
                "best": _best(best.get(record.id)),
                "baseline": None if (one := baselines.get(record.id)) is None else BaselineBest(**vars(one)),
                "max_dead_fraction": dead.get(record.id),
                "num_spikes": spikes[record.id],
                "eta_s": eta_s,
            }
        )
    return rows


def _best(best: Best | None) -> BestTrial | None:
    if best is None:
        return None
    return BestTrial(
        trial_id=best.trial_id,
        number=best.number,
        objective=best.objective,
        objective_tokens=best.objective_tokens,
        params=best.params,
    )


def _trials(work: Work, records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    ids = [record.id for record in records]
    newest, retries = newest_runs(work.connection, ids), work.trials.retries(ids)
    open_experiments = {record.experiment_id for record in records if not is_terminal(record.state)}
    standings = work.queue.standings() if open_experiments else None
    experiments = {id: work.experiments.get(id) for id in open_experiments}
    stopped = {command.trial_id for id in open_experiments for command in work.commands.pending(id, "stop")}
    rows: list[dict[str, Any]] = []
    for record in records:
        run = newest.get(record.id)
        fields = _trial_fields(record, run) | {"retried_by": retries.get(record.id)}
        if standings is not None and record.experiment_id in experiments:
            fields["reason"] = trial_reason(
                record,
                experiments[record.experiment_id],
                standings,
                is_live=run is not None and run.is_live,
                is_being_stopped=record.id in stopped,
            )
        rows.append(fields)
    return rows


def _trial_fields(record: TrialRecord, newest: NewestRun | None) -> dict[str, Any]:
    return {
        "id": record.id,
        "experiment_id": record.experiment_id,
        "number": record.number,
        "kind": record.kind.value,
        "label": record.label,
        "batch": record.batch,
        "point": record.point,
        "replica": record.replica,
        "retry_of": record.retry_of,
        "parent_trial_id": record.parent_trial_id,
        "state": record.state,
        "cause": record.cause,
        "reason": record.reason,
        "since_ms": record.since_ms,
        "params": record.params,
        "objective": record.objective,
        "objective_tokens": record.objective_tokens,
        "further_values": record.further_values,
        "veto": record.veto,
        "spec_version": record.spec_version,
        "progress": None if newest is None else _progress(newest.progress),
        "summary": _summary(record.summary),
        "rungs": [
            RungRead(
                rung=rung.rung,
                tokens=rung.tokens,
                value=rung.value,
                decision=None if rung.decision is None else rung.decision.value,
                explanation=rung.explanation,
                at_ms=rung.at_ms,
            )
            for rung in record.rungs
        ],
        "num_runs": 0 if newest is None else newest.num_runs,
        "num_retries": record.num_retries,
        "created_at_ms": record.created_at_ms,
        "started_at_ms": record.started_at_ms,
        "finished_at_ms": record.finished_at_ms,
    }


def _progress(stored: Mapping[str, Any] | None) -> Progress | None:
    if not stored:
        return None
    # A file of the run, copied by the driver: what an older trainer left out is absent, not an error.
    return Progress.model_validate(dict.fromkeys(Progress.model_fields) | {"num_spikes": 0} | dict(stored))


def _summary(stored: Mapping[str, Any] | None) -> RunSummary | None:
    """The stored summary if it is a whole one; a pruned trial's holds its last evaluation only."""
    if stored is None:
        return None
    try:
        return RunSummary.model_validate(stored)
    except ValidationError:
        return None


def _layer_kinds(config: Mapping[str, Any]) -> list[Any]:
    return list(TrainConfig.model_validate(config).model.layer_kinds())
