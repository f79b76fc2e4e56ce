"""What of a spec's scheduler and replicas is refused or warned about before anything runs."""

from orchestrator.errors import SpecProblem
from orchestrator.parsing import suggestion
from orchestrator.schedulers import (
    HalvingSection,
    HyperbandScheduler,
    IntervalSection,
    NoScheduler,
    PBTScheduler,
    RungsSection,
)
from orchestrator.screening import pointer, shown
from orchestrator.search.grid import num_search_trials
from orchestrator.search.population import explored_paths
from orchestrator.spec import ExperimentSpec
from trainer.config.fork import FORKABLE, is_forkable
from trainer.model.size import flops_per_token

MAX_RUNGS = 200
"""Most rungs at equal intervals."""


def scheduler_problems(spec: ExperimentSpec, warnings: list[str]) -> list[SpecProblem]:
    """What is wrong with the scheduler; what is merely a poor idea is added to `warnings`."""
    scheduler = spec.scheduler
    if isinstance(scheduler, NoScheduler):
        return []
    if spec.synchronous and not isinstance(scheduler, HalvingSection):
        what = (
            "the pbt scheduler waits for its whole population at every rung anyway; leave synchronous out"
            if isinstance(scheduler, PBTScheduler)
            else f"the {scheduler.kind} scheduler decides on each trial as it arrives, and a synchronous experiment on "
            "whole batches; use asha, which is successive halving there, or synchronous: false"
        )
        return [
            SpecProblem(
                pointer="/scheduler/kind",
                code="not_synchronous",
                message=what,
                given=scheduler.kind,
                allowed="none, asha, hyperband",
            )
        ]
    if scheduler.resource == "seconds":
        return _timed_problems(spec, warnings)
    problem = _range_problem(spec, scheduler)
    if problem is not None:
        return [problem]
    if isinstance(scheduler, PBTScheduler):
        return _population_problems(spec, scheduler, warnings)
    if isinstance(scheduler, HalvingSection) and spec.synchronous:
        _warn_of_small_batches(spec, scheduler, warnings)
    return []


def replica_problems(spec: ExperimentSpec) -> list[SpecProblem]:
    """What does not go with several trials per point."""
    if spec.replicas == 1:
        return []
    found: list[SpecProblem] = []
    if isinstance(spec.scheduler, PBTScheduler):
        found.append(
            SpecProblem(
                pointer="/replicas",
                code="not_with_pbt",
                message=f"replicas={spec.replicas} compares the same configuration under several seeds, and under pbt "
                "no two trials stay the same; set it to 1",
                given=spec.replicas,
                allowed="1",
            )
        )
    if "seed" in spec.space:
        found.append(
            SpecProblem(
                pointer=pointer(("space", "seed")),
                code="seed_is_replicated",
                message=f"replicas={spec.replicas} gives every point the same seeds, and seed is searched too; leave "
                "one of them out",
            )
        )
    found += [
        SpecProblem(
            pointer=pointer(("baselines", index, "set", "seed")),
            code="seed_is_replicated",
            message=f"replicas={spec.replicas} compares baselines with points of the same seeds; leave seed out",
            given=shown(baseline.set["seed"]),
        )
        for index, baseline in enumerate(spec.baselines)
        if "seed" in baseline.set
    ]
    return found


def _timed_problems(spec: ExperimentSpec, warnings: list[str]) -> list[SpecProblem]:
    why = None
    if spec.synchronous:
        why = "measured seconds are not the same twice, and a synchronous experiment promises the same table"
    elif isinstance(spec.scheduler, PBTScheduler):
        why = "a copy goes on from a step of its parent, which is at other seconds of its own"
    elif spec.resources.num_workers > 1:
        why = "the workers of one trial would have to agree on the time at every step"
    if why is not None:
        return [
            SpecProblem(
                pointer="/scheduler/resource",
                code="not_in_seconds",
                message=f"resource='seconds' does not go with this experiment: {why}",
                given="seconds",
                allowed="tokens, active_flops, steps",
            )
        ]
    warnings.append(
        "scheduler.resource is 'seconds', measured while each trial trains: what is stopped depends on the machine and "
        "on what else it does, and is not reproducible"
    )
    return []


def _range_problem(spec: ExperimentSpec, scheduler: HalvingSection | IntervalSection) -> SpecProblem | None:
    """The base's budget and step, in what the rungs count, against where the rungs are."""
    base = spec.base
    budget: float = base.loop.budget_tokens
    step: float = base.step_tokens
    whole, one = f"base.loop.budget_tokens={budget}", f"the {step} tokens of one step"
    if scheduler.resource == "steps":
        budget, step = base.num_steps, 1
        whole, one = f"the {budget} steps of the base", "1 step"
    elif scheduler.resource == "active_flops":
        each = flops_per_token(base.model, seq_len=base.data.seq_len)
        budget, step = budget * each, step * each
        whole, one = f"the {budget:.3g} FLOPs of the base's whole run", f"the {step:.3g} FLOPs of one step"
    name = _given(scheduler, "min")
    limit = None
    if scheduler.first >= budget:
        limit = f"less than {whole}"
    elif scheduler.first < step:
        limit = f"at least {one}"
    if limit is not None:
        return SpecProblem(
            pointer=f"/scheduler/{name}",
            code="out_of_range",
            message=f"{name}={scheduler.first:.12g} has to be {limit}",
            given=scheduler.first,
            allowed=limit,
        )
    if isinstance(scheduler, IntervalSection):
        num_rungs = int(min((budget - scheduler.first) // scheduler.interval, 2**53))
        if num_rungs > MAX_RUNGS:
            name = _given(scheduler, "interval")
            return SpecProblem(
                pointer=f"/scheduler/{name}",
                code="out_of_range",
                message=f"there would be {num_rungs} rungs, each with an evaluation and a checkpoint; make {name} "
                "larger",
                given=num_rungs,
                allowed=f"at most {MAX_RUNGS} rungs",
            )
    return None


def _given(scheduler: RungsSection, name: str) -> str:
    """Which of a field's two forms was given."""
    return f"{name}_tokens" if getattr(scheduler, f"{name}_resource") is None else f"{name}_resource"


def _warn_of_small_batches(spec: ExperimentSpec, scheduler: HalvingSection, warnings: list[str]) -> None:
    factor = scheduler.reduction_factor
    size, of = spec.batch_size, "each batch"
    if isinstance(scheduler, HyperbandScheduler):
        size, of = -(-spec.batch_size // scheduler.num_brackets), "each bracket of a batch"
    if size < factor:
        warnings.append(
            f"batch_size={spec.batch_size} is below reduction_factor={factor}, so every rung leaves one trial of {of}"
            if of == "each batch"
            else f"batch_size={spec.batch_size} leaves {size} trials to {of}, below reduction_factor={factor}, so "
            "every rung leaves one of them"
        )
    if scheduler.mode == "promote":
        warnings.append(
            "scheduler.mode plays no part in a synchronous experiment: its trials always pause at rungs, and go on "
            "when their batch has arrived"
        )


def _population_problems(spec: ExperimentSpec, scheduler: PBTScheduler, warnings: list[str]) -> list[SpecProblem]:
    found: list[SpecProblem] = []
    for index, path in enumerate(scheduler.explore or ()):
        if path not in spec.space:
            found.append(
                SpecProblem(
                    pointer=pointer(("scheduler", "explore", index)),
                    code="unknown_path",
                    message=f"{path[:200]!r} is not searched{suggestion(path, tuple(spec.space))}",
                    given=shown(path),
                    allowed=", ".join(sorted(spec.space))[:1000] or None,
                )
            )
        elif not is_forkable(path):
            found.append(
                SpecProblem(
                    pointer=pointer(("scheduler", "explore", index)),
                    code="not_forkable",
                    message=f"{path!r} gives a checkpoint another shape or meaning, so a copy that goes on from one "
                    "keeps it; leave it out",
                    given=shown(path),
                    allowed=", ".join(FORKABLE),
                )
            )
    if found:
        return found
    population = num_search_trials(spec)
    if int(population * scheduler.quantile + 1e-9) < 1:
        warnings.append(
            f"quantile={scheduler.quantile:g} of a population of num_trials={population} is less than one trial, so "
            "none is ever copied"
        )
    fixed = sorted(set(spec.space) - set(explored_paths(spec)))
    if spec.space and not explored_paths(spec):
        warnings.append("nothing of the space may change while a run goes on from a checkpoint: copies change nothing")
    elif fixed:
        warnings.append(f"copies of the population keep their parent's {', '.join(fixed)[:500]}")
    return []
