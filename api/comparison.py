"""The comparison as wire types."""

from dataclasses import asdict
from typing import Any

from api.schemas.comparison import (
    BaselineDifference,
    Comparison,
    ComparisonRow,
    DomainInformation,
    DomainScore,
    PairedDifference,
    PointRow,
    SeedNoise,
)
from orchestrator.search.rank import RankedTrial, compare
from orchestrator.search.replicates import PointResult, results_by_point
from orchestrator.spec import ExperimentSpec
from orchestrator.states import TrialState
from orchestrator.store.records import TrialKind
from orchestrator.store.work import Work


def comparison(work: Work, experiment_id: str) -> Comparison:
    """The trials of an experiment side by side; raises NotFound."""
    record = work.experiments.get(experiment_id)
    spec = ExperimentSpec.model_validate(record.spec)
    trials = work.trials.history(experiment_id)
    found = compare(spec, trials)
    baselines = [row for row in found.rows if row.kind == "baseline" and row.state is TrialState.COMPLETED]
    first = min(baselines, key=lambda row: row.number, default=None)
    return Comparison(
        experiment_id=record.id,
        objective=spec.objective,
        further_objectives=list(spec.further_objectives),
        contract=found.contract,
        baseline_trial_id=None if first is None else first.trial_id,
        domains=list(found.domains),
        noise=None if found.noise is None else SeedNoise.model_validate(asdict(found.noise)),
        rows=[_row(row, None if first is None else first.trial_id) for row in found.rows],
        points=[_point(result) for result in results_by_point(spec, trials)],
        caveats=list(found.caveats),
    )


def _point(result: PointResult) -> PointRow:
    return PointRow(
        rank=result.rank,
        point=result.point,
        kind="baseline" if result.kind is TrialKind.BASELINE else "search",
        label=result.label,
        params=result.params,
        trial_ids=list(result.trial_ids),
        num_completed=result.num_completed,
        num_failed=result.num_failed,
        num_open=result.num_open,
        mean=result.mean,
        standard_deviation=result.standard_deviation,
        low=result.low,
        high=result.high,
        differences=[PairedDifference.model_validate(asdict(one)) for one in result.differences],
        violations=list(result.violations),
    )


def _row(row: RankedTrial, baseline_trial_id: str | None) -> ComparisonRow:
    # A RunSummary, or of a pruned trial what its last evaluation gave.
    summary: dict[str, Any] = row.summary or {}
    information = summary.get("domain_information")
    to_first = [one.value for one in row.differences if one.baseline_trial_id == baseline_trial_id]
    return ComparisonRow(
        rank=row.rank,
        trial_id=row.trial_id,
        number=row.number,
        kind=row.kind.value,
        label=row.label,
        state=row.state,
        cause=row.cause,
        reason=row.reason,
        params=row.params,
        objective=row.objective,
        objective_tokens=row.objective_tokens,
        difference_to_baseline=to_first[0] if to_first else None,
        differences=[BaselineDifference.model_validate(asdict(one)) for one in row.differences],
        violations=list(row.violations),
        further_values=row.further_values,
        veto=row.veto,
        on_front=row.on_front,
        final_loss=summary.get("final_loss"),
        domains=[DomainScore.model_validate(asdict(one)) for one in row.domains],
        total_parameters=row.total_parameters,
        active_parameters=row.active_parameters,
        flops_per_token=row.flops_per_token,
        training_flops=row.training_flops,
        worst_max_violation=summary.get("worst_max_violation"),
        worst_max_violation_layer=summary.get("worst_max_violation_layer"),
        min_token_entropy=summary.get("min_token_entropy"),
        min_load_entropy=summary.get("min_load_entropy"),
        max_dead_fraction=summary.get("max_dead_fraction"),
        num_spikes=summary.get("num_spikes"),
        tokens_per_s=summary.get("tokens_per_s"),
        training_duration_s=summary.get("training_duration_s"),
        domain_information=None if information is None else DomainInformation.model_validate(information),
    )
