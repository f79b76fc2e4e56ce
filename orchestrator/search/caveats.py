"""What a comparison holds equal, and what it does not show, in sentences for people."""

import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from orchestrator.objective import START
from orchestrator.schedulers import HalvingSection, MedianScheduler
from orchestrator.search.matches import baseline_matches
from orchestrator.search.outcome import references, veto, violations
from orchestrator.spec import ExperimentSpec
from orchestrator.states import TrialState
from orchestrator.store.records import TrialKind, TrialRecord
from trainer.config import TrainConfig
from trainer.config.run import LookaheadProbe, RoutedLoss
from trainer.model.size import flops_per_token, model_size

_MIN_ENDED = 8
"""Trials that trained to the end, before anything is said of the order at rungs."""
_MISLEADING = 0.2
"""Rank correlation below which the order at a rung is called misleading."""


def contract_of(ranked: Sequence[TrialRecord]) -> str:
    """What is equal between the ranked trials: training tokens, active parameters, training FLOPs."""
    configs = [TrainConfig.model_validate(trial.config) for trial in ranked if trial.config is not None]
    if not configs:
        return "nothing to compare yet: no trial has trained its whole budget"
    tokens = {config.num_steps * config.step_tokens for config in configs}
    active = {model_size(config.model).active for config in configs}
    flops = {flops_per_token(config.model, seq_len=config.data.seq_len) for config in configs}
    return "; ".join(
        (
            _equal_or_range("training tokens", sorted(tokens)),
            _equal_or_range("active parameters", sorted(active)),
            _equal_or_range("training FLOPs per token", sorted(flops)),
        )
    )


def caveats_of(
    spec: ExperimentSpec, trials: Sequence[TrialRecord], ranked: Sequence[TrialRecord], *, knows_noise: bool
) -> tuple[str, ...]:
    """The sentences that belong under the table; those that do not apply are left out.

    Args:
        trials: all trials.
        ranked: those that trained their whole budget.
        knows_noise: whether some ranked trials differ in their seed only.
    """
    found: list[str] = []
    num_open = sum(trial.finished_at_ms is None for trial in trials)
    if num_open:
        found.append(f"{num_open} of {len(trials)} trials have not ended, so the ranking can still change.")
    if len(ranked) > 1 and not knows_noise:
        found.append(
            "Every configuration ran with one seed, so the noise between seeds is not known: a small difference may be "
            "chance. Set `replicas` to learn it."
        )
    num_searched = sum(trial.kind is TrialKind.SEARCH for trial in ranked)
    has_baselines = any(trial.kind is TrialKind.BASELINE for trial in ranked)
    if num_searched > 1:
        found.append(
            f"The best of {num_searched} trials was chosen on the held-out text that its figure is from, so it looks "
            "better than it would on fresh text."
        )
    if has_baselines and num_searched and spec.space:
        paths = ", ".join(sorted(spec.space))
        found.append(
            f"Baselines ran {'once' if spec.replicas == 1 else 'once per seed'}, with the values of the base; the "
            f"search tuned {paths}. A difference to a baseline includes that tuning."
        )
    names = {trial.label for trial in ranked if trial.kind is TrialKind.BASELINE}
    found += [match.sentence for match in baseline_matches(spec) if match.baseline in names]
    known = references(spec.objective, trials)
    beyond = [trial.number for trial in ranked if violations(spec.objective, trial, known)]
    if beyond:
        found.append(
            f"Beyond a limit of objective.constraints, and ranked behind all that keep to them: {_listed(beyond)}."
        )
    vetoed = [
        trial.number
        for trial in trials
        if trial.state is TrialState.COMPLETED and veto(spec.objective, trial, known) is not None
    ]
    if vetoed:
        found.append(f"Vetoed by a limit of objective.constraints, and not ranked: {_listed(vetoed)}.")
    unknown = sorted(
        {
            constraint.relative_to
            for constraint in spec.objective.constraints
            if constraint.relative_to not in (None, START) and constraint.relative_to not in known
        }
    )
    if unknown:
        found.append(f"Limits relative to {', '.join(unknown)} say nothing, since that baseline has no result.")
    if spec.further_objectives and ranked:
        found.append(
            "With several objectives no order is the right one: trials on the Pareto front are ranked first, and those "
            f"by {spec.objective.metric}."
        )
    copies = [trial.number for trial in ranked if trial.parent_trial_id is not None]
    if copies:
        found.append(
            f"What came of {_listed(copies)} is that of the values of their parents, too: they went on from their "
            "checkpoints, so such a result belongs to a schedule and not to one configuration."
        )
    num_pruned = sum(trial.state is TrialState.PRUNED for trial in trials)
    if num_pruned:
        found.append(
            f"{num_pruned} trials were stopped early and are listed at the tokens they reached; a slow starter among "
            "them might have won."
        )
    misleading = _misleading_rungs(spec, trials)
    if misleading is not None:
        found.append(misleading)
    num_failed = sum(trial.state in (TrialState.FAILED, TrialState.INFEASIBLE) for trial in trials)
    if num_failed:
        found.append(f"{num_failed} trials failed or could not run and are not ranked.")
    found += _lookahead_caveats(ranked)
    if ranked:
        found.append(
            f"Held-out figures are over {spec.base.data.evaluation_tokens:,} tokens of each corpus, after "
            f"{spec.base.loop.budget_tokens:,} training tokens: which choice wins may change with size and budget."
        )
    return tuple(found)


def _misleading_rungs(spec: ExperimentSpec, trials: Sequence[TrialRecord]) -> str | None:
    """Said where the order at rungs says next to nothing of the order at the end, among the trials that came there.

    These were let through for their values at the rungs, which makes the correlation smaller than over all trials: on
    simulated curves that do not cross it was 0.56 at least, on crossing ones 0.35 at most before the crossing.
    """
    scheduler = spec.scheduler
    if not isinstance(scheduler, HalvingSection | MedianScheduler):
        return None
    ended = [
        (trial.objective, {rung.rung: rung.value for rung in trial.rungs})
        for trial in trials
        if trial.kind is TrialKind.SEARCH and trial.state is TrialState.COMPLETED and trial.objective is not None
    ]
    found: list[str] = []
    num_compared: set[int] = set()
    for rung in sorted({rung for _, values in ended for rung in values}):
        pairs = [(value, objective) for objective, values in ended if (value := values.get(rung)) is not None]
        if len(pairs) >= _MIN_ENDED and (correlation := rank_correlation(pairs)) < _MISLEADING:
            found.append(f"{correlation:.2f} at rung {rung}")
            num_compared.add(len(pairs))
    if not found:
        return None
    other = "hyperband" if scheduler.kind != "hyperband" else "no scheduler"
    return (
        f"Of the {max(num_compared)} trials that trained to the end, those ahead early are not those ahead at the end: "
        f"rank correlation {', '.join(found)}. Better ones may have been stopped there; {other} or a later first rung "
        "would tell."
    )


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's: that of the ranks, equal values sharing theirs; 1 where one side is all equal, which says nothing."""
    ranks = [_ranks([pair[side] for pair in pairs]) for side in (0, 1)]
    if any(len(set(side)) == 1 for side in ranks):
        return 1.0
    return statistics.correlation(*ranks)


def _ranks(values: Sequence[float]) -> list[float]:
    in_order = sorted(values)
    return [(bisect_left(in_order, value) + bisect_right(in_order, value)) / 2 for value in values]


def _lookahead_caveats(ranked: Sequence[TrialRecord]) -> list[str]:
    """What to know of routers that choose a token's experts with a view of later tokens."""
    found: list[str] = []
    routers = {
        trial.number: moe.router
        for trial in ranked
        if trial.config is not None
        and (moe := TrainConfig.model_validate(trial.config).model.moe) is not None
        and moe.router.looks_ahead
    }
    in_training = sorted({router.kind for router in routers.values() if not router.evaluates_ahead})
    if in_training:
        found.append(
            f"In training the {', '.join(in_training)} router chooses a token's experts with a view of later tokens, "
            "and in evaluation without: compare such trials by held-out figures, not by their training loss."
        )
    if any(_has_capacity(trial) for trial in ranked):
        found.append(
            "In training, who loses an expert to `model.moe.capacity` depends on later tokens too, and in evaluation "
            "nobody does: compare such trials by held-out figures, not by their training loss."
        )
    always = sorted(number for number, router in routers.items() if router.evaluates_ahead)
    if always:
        kinds = ", ".join(sorted({routers[number].kind for number in always}))
        found.append(
            f"The {kinds} router of {_listed(always)} chooses a token's experts with a view of later tokens, in "
            "evaluation too: training loss and held-out figures may both be flattered, and text cannot be generated "
            "like that. Set `model.moe.router.predictor` for held-out figures that compare with others'."
        )
    probe = _probe_caveat(ranked)
    return found if probe is None else [*found, probe]


def _probe_caveat(ranked: Sequence[TrialRecord]) -> str | None:
    """The held-out loss that changes most when a trained model is routed otherwise; None where none was probed."""
    changes: list[tuple[float, int, RoutedLoss, RoutedLoss]] = []
    for trial in ranked:
        if trial.summary is None or trial.summary.get("lookahead") is None:
            continue
        probe = LookaheadProbe.model_validate(trial.summary["lookahead"])
        trained = probe.as_trained
        others = (*probe.by_chunk_size, *(() if probe.causal is None else (probe.causal,)))
        changes += [(abs(other.loss - trained.loss), -trial.number, trained, other) for other in others]
    if not changes:
        return None
    _, negative_number, trained, other = max(changes, key=lambda change: change[:2])
    return (
        f"How much hangs on that view: routed over {_competitors(other)} instead of {_competitors(trained)}, the "
        f"trained model of trial {-negative_number} has a held-out loss of {other.loss:.3f} instead of "
        f"{trained.loss:.3f} nats/token, the largest such change."
    )


def _has_capacity(trial: TrialRecord) -> bool:
    moe = None if trial.config is None else TrainConfig.model_validate(trial.config).model.moe
    return moe is not None and moe.capacity is not None


def _listed(numbers: Sequence[int]) -> str:
    return f"trial {', '.join(map(str, numbers))}" if len(numbers) <= 8 else f"{len(numbers)} trials"


def _competitors(routed: RoutedLoss) -> str:
    return "each token alone" if routed.chunk_size is None else f"chunks of {routed.chunk_size:,} tokens"


def _equal_or_range(name: str, values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"equal {name} ({values[0]:,.0f})"
    return f"{name} differ ({values[0]:,.0f} to {values[-1]:,.0f})"
