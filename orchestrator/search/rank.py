"""Comparing an experiment's trials: who is best, by how much, and what the table does not show.

Only trials that trained their whole budget are ranked. A pruned trial's figure was taken at fewer tokens, so it is
listed with those tokens and never among the ranked.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.search.caveats import caveats_of, contract_of
from orchestrator.search.outcome import references, veto, violations
from orchestrator.search.pareto import pareto_front
from orchestrator.spec import ExperimentSpec, Scalar
from orchestrator.states import Cause, TrialState
from orchestrator.store.records import TrialKind, TrialRecord
from trainer.config import TrainConfig
from trainer.model.size import flops_per_token, model_size

_ORDER = {
    TrialState.COMPLETED: 0,
    TrialState.PRUNED: 1,
    TrialState.RUNNING: 2,
    TrialState.RETRYING: 2,
    TrialState.QUEUED: 3,
    TrialState.FAILED: 4,
    TrialState.INFEASIBLE: 5,
    TrialState.CANCELLED: 6,
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A trial's objective minus a baseline's.

    Attributes:
        within_noise: whether seeds alone can explain it; None if the noise is not known.
    """

    baseline_trial_id: str
    baseline_label: str
    value: float
    within_noise: bool | None


@dataclass(frozen=True, kw_only=True)
class DomainScore:
    """Held-out bits per byte of a corpus (or `all`) before the first step and at the end."""

    domain: str
    initial: float | None
    final: float | None


@dataclass(frozen=True, kw_only=True)
class RankedTrial:
    """One line of the table.

    Attributes:
        rank: 1 is best, baselines among the others; None for trials that did not train their whole budget.
        objective_tokens: training tokens at which `objective` was measured.
        differences: to each completed baseline but itself, in the order of their numbers.
        violations: the limits of the objective that the trial is beyond; such trials rank behind the others.
        further_values: of the spec's further objectives; None of a trial that did not complete, or if there are none.
        veto: the limit with a veto that the trial is beyond; such trials have no rank.
        on_front: of ranked trials with several objectives: no other one is as good in all and better in one. Those on
            the front rank before the others, by the first objective.
        training_flops: FLOPs spent until `objective_tokens`.
        summary: the run's summary (trainer.config.run.RunSummary as JSON; less for a pruned trial), or None.
    """

    rank: int | None
    trial_id: str
    number: int
    kind: TrialKind
    label: str | None
    state: TrialState
    cause: Cause | None
    reason: str
    params: dict[str, Scalar]
    objective: float | None
    objective_tokens: int | None
    differences: tuple[Difference, ...]
    violations: tuple[str, ...]
    further_values: list[float | None] | None
    veto: str | None
    on_front: bool | None
    domains: tuple[DomainScore, ...]
    total_parameters: int | None
    active_parameters: int | None
    flops_per_token: float | None
    training_flops: float | None
    summary: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How much the objective varies between seeds alone.

    Attributes:
        standard_deviation: pooled over the groups of completed trials that differ in their seed only.
        num_groups, num_trials: what it was pooled from.
    """

    standard_deviation: float
    num_groups: int
    num_trials: int

    def explains(self, difference: float) -> bool:
        """True if two trials of one configuration differ as much in 1 of 20 cases or more (normal errors)."""
        return abs(difference) <= 1.96 * math.sqrt(2) * self.standard_deviation


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The table of an experiment.

    Attributes:
        contract: what is equal between the ranked trials, in words.
        domains: `all` first, then the mixture's corpora in their order.
        rows: ranked trials first, then pruned, then the rest.
        noise: None if no two completed trials differ in their seed only.
        caveats: what the table does not show, one sentence each.
    """

    contract: str
    domains: tuple[str, ...]
    rows: tuple[RankedTrial, ...]
    noise: Noise | None
    caveats: tuple[str, ...]


def compare(spec: ExperimentSpec, trials: Sequence[TrialRecord]) -> Comparison:
    """The comparison of an experiment's trials, as far as they have come. The order of `trials` plays no part."""
    direction = 1 if spec.objective.direction == "minimize" else -1
    known = references(spec.objective, trials)
    judged = {
        trial.id: violations(spec.objective, trial, known)
        for trial in trials
        if trial.state is TrialState.COMPLETED and trial.objective is not None
    }
    vetoes = {trial.id: veto(spec.objective, trial, known) for trial in trials if trial.id in judged}
    eligible = [trial for trial in trials if trial.id in judged and vetoes[trial.id] is None]
    front = (
        pareto_front(spec, [trial for trial in eligible if not judged[trial.id]]) if spec.further_objectives else None
    )
    ranked = sorted(
        eligible,
        key=lambda trial: (
            bool(judged[trial.id]),
            front is not None and trial.id not in front,
            direction * _objective(trial),
            trial.number,
        ),
    )
    ranks = {trial.id: rank for rank, trial in enumerate(ranked, start=1)}
    baselines = sorted((trial for trial in ranked if trial.kind is TrialKind.BASELINE), key=lambda trial: trial.number)
    noise = _noise(ranked)
    domains = ("all", *spec.base.data.mixture)
    ordered = sorted(trials, key=lambda trial: _place(trial, ranks, direction))
    rows = tuple(
        replace(
            _row(spec, trial, ranks.get(trial.id), baselines, noise, domains),
            violations=judged.get(trial.id) or violations(spec.objective, trial, known),
            veto=vetoes.get(trial.id),
            on_front=None if front is None or trial.id not in ranks else trial.id in front,
        )
        for trial in ordered
    )
    return Comparison(
        contract=contract_of(ranked),
        domains=domains,
        rows=rows,
        noise=noise,
        caveats=caveats_of(spec, trials, ranked, knows_noise=noise is not None),
    )


def _objective(trial: TrialRecord) -> float:
    assert trial.objective is not None
    return trial.objective


def _place(trial: TrialRecord, ranks: Mapping[str, int], direction: int) -> tuple[float, ...]:
    """Ranked trials by rank, pruned ones by how far they came and then by objective, the rest by number."""
    cost = math.inf if trial.objective is None else direction * trial.objective
    return (_ORDER[trial.state], ranks.get(trial.id, math.inf), -(trial.objective_tokens or 0), cost, trial.number)


def _row(
    spec: ExperimentSpec,
    trial: TrialRecord,
    rank: int | None,
    baselines: Sequence[TrialRecord],
    noise: Noise | None,
    domains: Sequence[str],
) -> RankedTrial:
    differences: list[Difference] = []
    for baseline in baselines:
        if rank is not None and baseline.id != trial.id:
            value = _objective(trial) - _objective(baseline)
            differences.append(
                Difference(
                    baseline_trial_id=baseline.id,
                    baseline_label=baseline.label or f"trial {baseline.number}",
                    value=value,
                    within_noise=None if noise is None else noise.explains(value),
                )
            )
    config = None if trial.config is None else TrainConfig.model_validate(trial.config)
    size = None if config is None else model_size(config.model)
    flops = None if config is None else flops_per_token(config.model, seq_len=config.data.seq_len)
    tokens = trial.objective_tokens
    summary = trial.summary or {}
    initial = summary.get("initial_bits_per_byte") or {}
    final = summary.get("bits_per_byte") or {}
    return RankedTrial(
        rank=rank,
        trial_id=trial.id,
        number=trial.number,
        kind=trial.kind,
        label=trial.label,
        state=trial.state,
        cause=trial.cause,
        reason=trial.reason,
        params=trial.params,
        objective=trial.objective,
        objective_tokens=tokens,
        differences=tuple(differences),
        violations=(),
        further_values=trial.further_values,
        veto=None,
        on_front=None,
        domains=tuple(
            DomainScore(domain=domain, initial=initial.get(domain), final=final.get(domain)) for domain in domains
        ),
        total_parameters=None if size is None else size.total,
        active_parameters=None if size is None else size.active,
        flops_per_token=flops,
        training_flops=None if flops is None or tokens is None else flops * tokens,
        summary=trial.summary,
    )


def _noise(ranked: Sequence[TrialRecord]) -> Noise | None:
    """The pooled standard deviation of trials whose configurations differ in nothing but the seed."""
    groups: dict[str, dict[int, float]] = defaultdict(dict)
    for trial in ranked:
        if trial.config is not None:
            config = TrainConfig.model_validate(trial.config | {"seed": 0})
            # The same configuration with the same seed again would say nothing about seeds.
            groups[config.fingerprint()].setdefault(trial.config["seed"], _objective(trial))
    replicas = [list(by_seed.values()) for by_seed in groups.values() if len(by_seed) > 1]
    degrees = sum(len(values) - 1 for values in replicas)
    if degrees == 0:
        return None
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in replicas)
    return Noise(
        standard_deviation=math.sqrt(squares / degrees),
        num_groups=len(replicas),
        num_trials=sum(len(values) for values in replicas),
    )
