"""Population-based training: who of the population ends at a rung, and what goes on in its place. Pure functions.

Source: Jaderberg et al. 2017, arXiv:1711.09846, section 4.1.1: truncation selection, perturb and resample.
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from orchestrator.errors import InfeasiblePoint
from orchestrator.schedulers import PBTScheduler
from orchestrator.search.constraints import parse_constraint
from orchestrator.search.draw import derived_seed, value_at
from orchestrator.search.grid import AnyDomain, lattice_point, num_search_trials
from orchestrator.search.points import is_paused
from orchestrator.search.rungs import rung_tokens
from orchestrator.search.space import active, parameters, resolve, violation
from orchestrator.search.stop import Decision, RungDecision, cost_of
from orchestrator.search.waiting import Verdict
from orchestrator.spec import ChoiceDomain, ExperimentSpec, FloatDomain, IntDomain, Scalar
from orchestrator.store.records import CheckpointRecord, Proposal, TrialKind, TrialRecord
from trainer.config import TrainConfig
from trainer.config.fork import fork_problems, is_forkable
from trainer.config.start import ForkStartConfig

_NUM_TRIES = 20
"""How often values are changed anew that make no valid configuration, before the copy keeps those of its parent."""


class Copy(NamedTuple):
    """A trial that ends, and the one whose checkpoint at `rung` a new trial begins with in its place."""

    ended: TrialRecord
    parent: TrialRecord
    rung: int


class Generation(NamedTuple):
    """What becomes of the population at a rung."""

    verdicts: list[Verdict]
    copies: list[Copy]


def generation(spec: ExperimentSpec, history: Sequence[TrialRecord]) -> Generation:
    """The decisions on a population that has arrived at a rung as a whole; empty while one that lives has not.

    Of the `n` that have arrived, the worst `floor(n * quantile)` end, and all whose value is not finite; each is
    replaced by a copy of one of the best `floor(n * quantile)`, drawn by the spec's seed, the rung and its number.
    """
    scheduler = spec.scheduler
    nothing = Generation([], [])
    if not isinstance(scheduler, PBTScheduler):
        return nothing
    members = [trial for trial in history if trial.kind is TrialKind.SEARCH]
    if sum(trial.parent_trial_id is None for trial in members) < num_search_trials(spec):
        return nothing
    living = [trial for trial in members if trial.finished_at_ms is None]
    waiting = [trial for trial in living if is_paused(trial)]
    if not waiting or len(waiting) < len(living):
        return nothing
    rung = min(trial.rungs[-1].rung for trial in waiting)
    here = [trial for trial in waiting if trial.rungs[-1].rung == rung]
    ranked = sorted(here, key=lambda trial: (cost_of(spec, trial.rungs[-1].value), trial.number))
    num_finite = sum(math.isfinite(cost_of(spec, trial.rungs[-1].value)) for trial in ranked)
    share = int(len(ranked) * scheduler.quantile + 1e-9)
    num_kept = min(len(ranked) - share, num_finite)
    parents = ranked[: max(1, min(share, num_kept))] if num_kept else []
    verdicts: list[Verdict] = []
    copies: list[Copy] = []
    for rank, trial in enumerate(ranked, start=1):
        value = trial.rungs[-1].value
        place = f"rank {rank} of {len(ranked)} at rung {rung} with " + (
            "no finite value" if value is None else f"{value:.4f}"
        )
        if rank <= num_kept:
            decision = Decision(decision=RungDecision.CONTINUE, explanation=f"{place}; the best {num_kept} go on")
        elif not parents:
            decision = Decision(decision=RungDecision.STOP, explanation=f"{place}, like all the others")
        else:
            parent = parents[derived_seed(spec.seed, "parent", rung, trial.number) % len(parents)]
            sentence = f"{place}; a changed copy of trial {parent.number} goes on in its place"
            decision = Decision(decision=RungDecision.STOP, explanation=sentence)
            copies.append(Copy(trial, parent, rung))
        verdicts.append(Verdict(trial.id, rung, decision))
    return Generation(verdicts, sorted(copies, key=lambda copy: copy.ended.number))


def copy_of(spec: ExperimentSpec, parent: TrialRecord, checkpoint: CheckpointRecord, *, number: int) -> Proposal:
    """The new trial `number` that goes on from a checkpoint of `parent` with changed values.

    Values that make no valid configuration, or none that may go on from the checkpoint, are changed anew, and after
    some tries those of the parent are kept.
    """
    assert parent.config is not None
    before = TrainConfig.model_validate(parent.config)
    start = ForkStartConfig(path=checkpoint.folder, sha256=checkpoint.manifest_sha256, step=checkpoint.step)
    constraints = [parse_constraint(text) for text in spec.constraints]
    for attempt in range(_NUM_TRIES):
        point = explored(spec, parent.params, number=number, attempt=attempt)
        if violation(spec, constraints, point) is not None:
            continue
        try:
            config = resolve(spec, point).model_copy(update={"start": start})
        except InfeasiblePoint:
            continue
        if not fork_problems(before, config, step=checkpoint.step):
            return Proposal(params=point, config=config, parent=checkpoint)
    return Proposal(params=dict(parent.params), config=before.model_copy(update={"start": start}), parent=checkpoint)


def num_copies(spec: ExperimentSpec) -> int:
    """How many trials come on top of the population, if none of its members fails; 0 without a population."""
    scheduler = spec.scheduler
    if not isinstance(scheduler, PBTScheduler):
        return 0
    return int(num_search_trials(spec) * scheduler.quantile + 1e-9) * len(rung_tokens(spec))


def explored(spec: ExperimentSpec, params: Mapping[str, Scalar], *, number: int, attempt: int = 0) -> dict[str, Scalar]:
    """The point of a trial's parent with the values changed that may be, each from a stream of its own.

    A number is multiplied by one of `factors` or, with `resample_probability`, drawn anew; a choice moves to a
    neighbour or is drawn anew. An option is only drawn anew, and then all that is inside of it.
    """
    scheduler = spec.scheduler
    assert isinstance(scheduler, PBTScheduler)
    changed_paths = explored_paths(spec)
    point: dict[str, Scalar] = {}
    for parameter in parameters(spec):
        if not active(parameter, point):
            continue
        name, domain = parameter.name, parameter.domain
        stream = random.Random(derived_seed(spec.seed, "explore", number, attempt, name))
        resamples, uniform = stream.random() < scheduler.resample_probability, stream.random()
        path = next(path for path in spec.space if name == path or name.startswith(f"{path}."))
        if name not in params:
            point[name] = value_at(domain, uniform)
        elif path not in changed_paths:
            point[name] = params[name]
        elif resamples:
            point[name] = value_at(domain, uniform)
        else:
            point[name] = _perturbed(domain, params[name], scheduler.factors, uniform)
    return point


def explored_paths(spec: ExperimentSpec) -> tuple[str, ...]:
    """The paths of the space whose values a copy changes."""
    assert isinstance(spec.scheduler, PBTScheduler)
    chosen = spec.scheduler.explore
    return tuple(sorted(path for path in spec.space if is_forkable(path) and (chosen is None or path in chosen)))


def _perturbed(domain: AnyDomain, value: Scalar, factors: Sequence[float], uniform: float) -> Scalar:
    if isinstance(domain, ChoiceDomain):
        index = next(i for i, choice in enumerate(domain.choice) if choice == value and type(choice) is type(value))
        return domain.choice[max(0, min(len(domain.choice) - 1, index + (1 if uniform >= 0.5 else -1)))]
    factor = factors[int(uniform * len(factors))]
    if isinstance(domain, FloatDomain):
        assert isinstance(value, int | float)
        low, high = domain.float
        if domain.step is not None:
            index = round((value * factor - low) / domain.step)
            return lattice_point(low, high, domain.step, max(0, min(int((high - low) / domain.step + 1e-9), index)))
        return max(low, min(high, value * factor))
    if isinstance(domain, IntDomain):
        assert isinstance(value, int)
        low, high = domain.int
        steps = round((value * factor - low) / domain.step)
        if low + steps * domain.step == value and factor != 1:
            steps += 1 if factor > 1 else -1  # so that small numbers move at all
        return low + max(0, min((high - low) // domain.step, steps)) * domain.step
    return value
