"""Admission: a document becomes an experiment here, or is refused with everything that is wrong with it.

A spec is refused for what can never run; what is merely a poor idea becomes a warning. All work is bounded by
constants, so that a hostile document (deep, huge, a grid of 10^9 points) is answered as fast as an honest one.
"""

from dataclasses import dataclass
from typing import Any

from orchestrator.capacity import Capacity, memory_place
from orchestrator.errors import InfeasiblePoint, SpecProblem, SpecRejected
from orchestrator.objective import START, WORST, LastValue, ValueAt
from orchestrator.parsing import parse_spec, suggestion
from orchestrator.samplers import CMAESSampler
from orchestrator.schedulers import NoScheduler
from orchestrator.screening import MAX_PROBLEMS, pointer, screen, shown
from orchestrator.search.admission import point_problems, search_problems
from orchestrator.search.matches import BaselineMatch
from orchestrator.search.scheduling import replica_problems, scheduler_problems
from orchestrator.search.space import baseline_config, baseline_twin, path_problem, worker_problem
from orchestrator.search.trial_points import check_domains, check_points
from orchestrator.spec import ExperimentSpec
from trainer.config import TrainConfig
from trainer.config.routers import LearnedRouterSection
from trainer.model.size import memory_estimate

MAX_RESIDUAL = 0.01
"""Share by which a matched baseline may miss what the base has without a warning."""


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A spec that can run.

    Attributes:
        spec: with all defaults.
        document: what the user sent.
        warnings: what is allowed but probably not meant, one sentence each.
    """

    spec: ExperimentSpec
    document: dict[str, Any]
    warnings: list[str]


def admit(document: object, *, capacity: Capacity | None) -> Admitted:
    """The admitted spec of a document.

    Args:
        document: plain values, as parsed from JSON or YAML.
        capacity: what the cluster holds; None (not known yet) skips the checks against it.

    Raises:
        SpecRejected: with every problem that was found, each with a pointer into the document.
    """
    screen(document)
    spec, problems = parse_spec(document)
    if spec is None:
        raise SpecRejected(problems)
    assert isinstance(document, dict)  # or it would not have parsed
    warnings: list[str] = []
    problems += _space_problems(spec)
    problems += search_problems(spec, warnings)
    problems += _objective_problems(spec, spec.base)
    problems += _several_objectives_problems(spec, warnings)
    problems += _reduction_problems(spec, warnings)
    problems += scheduler_problems(spec, warnings)
    problems += replica_problems(spec)
    problems += _resource_problems(spec, capacity)
    problems += _baseline_problems(spec, capacity, warnings)
    problems += _memory_problems(spec, spec.base, capacity, "/base/model")
    problems += _start_problems(spec.base, "/base/start/path")
    warnings += _router_warnings(spec.base)
    if not problems:
        problems += check_domains(spec)
    if not problems:
        problems += point_problems(spec, warnings)
    if not problems:
        problems += check_points(spec, capacity, warnings)
    if problems:
        raise SpecRejected(problems[:MAX_PROBLEMS])
    return Admitted(spec=spec, document=document, warnings=warnings)


def _space_problems(spec: ExperimentSpec) -> list[SpecProblem]:
    found: list[SpecProblem] = []
    paths = sorted(spec.space)
    for path in paths:
        outer = next((other for other in paths if path.startswith(other + ".")), None)
        if (problem := path_problem(spec.base, path)) is not None:
            found.append(_no_such_path(path, problem, ("space", path)))
        elif outer is not None:
            found.append(
                SpecProblem(
                    pointer=pointer(("space", path)),
                    code="overlapping_paths",
                    message=f"{path!r} lies inside {outer!r}, which is searched too; put it into options of {outer!r}",
                    given=path,
                )
            )
    return found


def _no_such_path(path: str, problem: tuple[str, tuple[str, ...]], place: tuple[str | int, ...]) -> SpecProblem:
    reason, names = problem
    wrong = next((part for part in path.split(".") if repr(part[:80]) in reason), path)
    return SpecProblem(
        pointer=pointer(place),
        code="unknown_path",
        message=f"there is no {path[:200]!r} in base: {reason}{suggestion(wrong, names)}",
        given=shown(path),
        allowed=f"there: {', '.join(names)}" if names else None,
    )


def _router_warnings(base: TrainConfig) -> list[str]:
    """What the base says of its router that teaches it less than was probably meant."""
    moe = base.model.moe
    if moe is None or moe.top_k > 1 or not isinstance(moe.router, LearnedRouterSection) or not moe.router.normalize:
        return []
    return [
        "model.moe.top_k=1 with router.normalize=true: the one expert of a token always weighs the same, so the loss "
        "teaches the router nothing; set normalize to false, as Switch does"
    ]


def _objective_problems(spec: ExperimentSpec, config: TrainConfig, at: str | None = None) -> list[SpecProblem]:
    """Corpora that objectives and their limits name and that `config` does not have.

    Args:
        at: where to say so; by default at each of them.
    """
    named = [("/objective/domain", spec.objective.domain)]
    named += [(f"/further_objectives/{index}/domain", one.domain) for index, one in enumerate(spec.further_objectives)]
    named += [
        (f"/objective/constraints/{index}/domain", one.domain)
        for index, one in enumerate(spec.objective.constraints)
        if one.domain != WORST
    ]
    names = ("all", *config.data.mixture)
    return [
        SpecProblem(
            pointer=place if at is None else at,
            code="unknown_domain",
            message=f"{place[1:].replace('/', '.')}={domain[:80]!r} is not in the mixture{suggestion(domain, names)}",
            given=shown(domain),
            allowed=", ".join(names),
        )
        for place, domain in named
        if domain not in names
    ]


def _several_objectives_problems(spec: ExperimentSpec, warnings: list[str]) -> list[SpecProblem]:
    """What does not go with several objectives, and limits relative to what is not there."""
    found: list[SpecProblem] = []
    names = [baseline.name for baseline in spec.baselines]
    for index, constraint in enumerate(spec.objective.constraints):
        reference = constraint.relative_to
        if reference not in (None, START, *names):
            found.append(
                SpecProblem(
                    pointer=f"/objective/constraints/{index}/relative_to",
                    code="unknown_baseline",
                    message=f"there is no baseline named {reference[:80]!r}{suggestion(reference, names)}",
                    given=shown(reference),
                    allowed=", ".join((START, *names)),
                )
            )
    if not spec.further_objectives:
        return found
    objectives = (spec.objective, *spec.further_objectives)
    seen: list[tuple[str, str, str]] = []
    for index, objective in enumerate(objectives):
        same = (objective.metric, objective.domain, objective.value.model_dump_json())
        if same in seen:
            found.append(
                SpecProblem(
                    pointer=f"/further_objectives/{index - 1}/metric",
                    code="repeated",
                    message=f"{objective.metric} of {objective.domain!r} is an objective already; leave it out",
                    given=objective.metric,
                )
            )
        seen.append(same)
    if isinstance(spec.sampler, CMAESSampler):
        found.append(
            SpecProblem(
                pointer="/sampler/kind",
                code="one_objective_only",
                message="cmaes adapts to one objective, and there are further_objectives; use tpe, gp, nsga2 or nsga3",
                given=spec.sampler.kind,
                allowed="random, grid, brute_force, qmc, tpe, gp, nsga2, nsga3",
            )
        )
    if not isinstance(spec.scheduler, NoScheduler):
        warnings.append(
            f"the {spec.scheduler.kind} scheduler judges by the first objective, {spec.objective.metric}, alone: "
            "trials that would be on the Pareto front for another one may be stopped"
        )
    return found


def _reduction_problems(spec: ExperimentSpec, warnings: list[str]) -> list[SpecProblem]:
    loop = spec.base.loop
    found: list[SpecProblem] = []
    between: list[str] = []
    objectives = [("objective", spec.objective.value)]
    objectives += [(f"further_objectives.{index}", one.value) for index, one in enumerate(spec.further_objectives)]
    for name, value in objectives:
        if isinstance(value, ValueAt) and value.tokens > loop.budget_tokens:
            limit = f"at most base.loop.budget_tokens={loop.budget_tokens}"
            found.append(
                SpecProblem(
                    pointer=f"/{name.replace('.', '/')}/value/tokens",
                    code="out_of_range",
                    message=f"tokens={value.tokens} has to be {limit}",
                    given=value.tokens,
                    allowed=limit,
                )
            )
        elif not isinstance(value, LastValue) and loop.evaluate_every_tokens is None:
            between.append(f"{name}.value is {value.kind!r}")
    if between:
        warnings.append(
            f"{', '.join(between)}, and base.loop.evaluate_every_tokens is not set, so trials are "
            "evaluated only before the first step, at rungs and at the end"
        )
    return found


def _resource_problems(spec: ExperimentSpec, capacity: Capacity | None) -> list[SpecProblem]:
    found: list[SpecProblem] = []
    resources = spec.resources
    if problem := worker_problem(spec.base, resources.num_workers):
        found.append(
            SpecProblem(
                pointer="/resources/num_workers", code="out_of_range", message=problem, given=resources.num_workers
            )
        )
    if capacity is None:
        return found
    for word, per_worker, available in (
        ("cpus", resources.cpus_per_worker, [node.cpus for node in capacity.nodes]),
        ("gpus", resources.gpus_per_worker, [node.gpus for node in capacity.nodes]),
    ):
        needed = per_worker * resources.num_workers
        if needed > sum(available) + 1e-9:
            message = f"a trial needs {needed:g} {word}, the cluster has {sum(available):g}; ask for less"
        elif per_worker > max(available) + 1e-9:
            message = f"a worker needs {per_worker:g} {word}, the largest node has {max(available):g}; ask for less"
        else:
            continue
        found.append(
            SpecProblem(
                pointer=f"/resources/{word}_per_worker",
                code="exceeds_cluster",
                message=message,
                given=per_worker,
                allowed=f"at most {max(available):g} a worker and {sum(available):g} in all",
            )
        )
    if not found and capacity.num_parallel_trials(resources) == 0:
        found.append(
            SpecProblem(
                pointer="/resources/num_workers",
                code="exceeds_cluster",
                message=f"the {len(capacity.nodes)} nodes have no place for {resources.num_workers} workers of "
                f"{resources.cpus_per_worker:g} cpus and {resources.gpus_per_worker:g} gpus at a time; ask for fewer",
                given=resources.num_workers,
            )
        )
    return found


def _baseline_problems(spec: ExperimentSpec, capacity: Capacity | None, warnings: list[str]) -> list[SpecProblem]:
    found: list[SpecProblem] = []
    seen: set[str] = set()
    for index, baseline in enumerate(spec.baselines):
        place: tuple[str | int, ...] = ("baselines", index)
        if baseline.name in seen:
            found.append(
                SpecProblem(
                    pointer=pointer((*place, "name")),
                    code="name_taken",
                    message=f"there are two baselines named {baseline.name!r}",
                    given=baseline.name,
                )
            )
        seen.add(baseline.name)
        unknown = [(path, problem) for path in baseline.set if (problem := path_problem(spec.base, path)) is not None]
        found.extend(_no_such_path(path, problem, (*place, "set", path)) for path, problem in unknown)
        if unknown:
            continue
        decisive = "set" if baseline.match is None else "match"
        try:
            config = baseline_config(spec, baseline)
            twin = baseline_twin(spec, baseline)
        except InfeasiblePoint as error:
            found.append(
                SpecProblem(
                    pointer=pointer((*place, decisive)),
                    code="invalid",
                    message=f"baseline {baseline.name!r} is not a valid configuration: {error}",
                )
            )
            continue
        if twin is not None and abs(twin.residual) > MAX_RESIDUAL:
            warnings.append(BaselineMatch(baseline.name, twin).sentence)
        found += _objective_problems(spec, config, pointer((*place, "set")))
        if "start.path" in baseline.set or "start" in baseline.set:
            found += _start_problems(config, pointer((*place, "set")))
        found += _memory_problems(spec, config, capacity, pointer((*place, decisive)))
    return found


def _memory_problems(
    spec: ExperimentSpec, config: TrainConfig, capacity: Capacity | None, at: str
) -> list[SpecProblem]:
    """Said of a configuration whose workers find the memory they need nowhere: on no GPU if they take one, else on no
    host."""
    if capacity is None:
        return []
    needed, available = memory_estimate(config).total_gib, capacity.most_memory_gib(spec.resources)
    if needed <= available:
        return []
    return [
        SpecProblem(
            pointer=at,
            code="does_not_fit",
            message=f"one worker needs about {needed:.3g} GiB, {memory_place(spec.resources)} has {available:.3g} GiB; "
            "make the model or micro_batch_size smaller",
            given=f"{needed:.3g} GiB",
            allowed=f"at most {available:.3g} GiB",
        )
    ]


def _start_problems(config: TrainConfig, at: str) -> list[SpecProblem]:
    """What a run would refuse; early, and before anybody looks at the path."""
    if config.start.kind == "scratch" or not config.start.is_absolute:
        return []
    return [
        SpecProblem(
            pointer=at,
            code="absolute_path",
            message=f"start.path={config.start.path[:200]!r} is absolute; a run starts from weights in the home of the "
            "service, given by their path from there",
            given=shown(config.start.path),
            allowed="a relative path, e.g. experiments/ID/trials/00003/ID",
        )
    ]
