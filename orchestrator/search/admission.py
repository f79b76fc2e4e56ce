"""What of a spec's search is refused or warned about before it runs: sampler, constraints, enqueued points."""

from typing import Any

from orchestrator.errors import InfeasiblePoint, SpecProblem
from orchestrator.parsing import suggestion
from orchestrator.samplers import (
    BruteForceSampler,
    CMAESSampler,
    GPSampler,
    GridSampler,
    NSGA2Sampler,
    NSGA3Sampler,
    TPESampler,
)
from orchestrator.screening import pointer, shown
from orchestrator.search.cma import adapted, population_size
from orchestrator.search.constraints import ALLOWED, Constraint, parse_constraint
from orchestrator.search.draw import draw, holds
from orchestrator.search.grid import grid_size
from orchestrator.search.space import active, document_at, parameters, path_problem, violation
from orchestrator.spec import ExperimentSpec, OptionsDomain

MAX_GRID = 100_000
"""Most points of a grid."""
_LEARNS = TPESampler | GPSampler | CMAESSampler | NSGA2Sampler | NSGA3Sampler
_NUM_DRAWS = 200
"""Random points that the constraints are tried on: about 30 ms."""


def search_problems(spec: ExperimentSpec, warnings: list[str]) -> list[SpecProblem]:
    """What is wrong with the sampler and its space; what is merely a poor idea is added to `warnings`."""
    if spec.warm_start and not isinstance(spec.sampler, _LEARNS):
        return [
            SpecProblem(
                pointer="/warm_start",
                code="learns_nothing",
                message=f"the {spec.sampler.kind} sampler learns from no trial, so a warm start changes nothing; leave "
                "it out, or use a sampler that learns",
                given=shown(list(spec.warm_start)),
                allowed="with tpe, gp, cmaes, nsga2, nsga3",
            )
        ]
    if isinstance(spec.sampler, GridSampler | BruteForceSampler):
        return _grid_problems(spec, warnings)
    if not spec.space:
        if (spec.num_trials or 1) > 1:
            return [
                SpecProblem(
                    pointer="/space",
                    code="empty_space",
                    message=f"the space is empty, so all of num_trials={spec.num_trials} trials would be the same; "
                    "name paths to vary, or set num_trials to 1",
                )
            ]
        return []
    if spec.num_trials is None:
        return [
            SpecProblem(
                pointer="/num_trials",
                code="missing_field",
                message=f"the {spec.sampler.kind} sampler has no end of its own; say how many trials it makes",
                allowed="1 to 100,000",
            )
        ]
    return []


def point_problems(spec: ExperimentSpec, warnings: list[str]) -> list[SpecProblem]:
    """What is wrong with constraints, enqueued points and the model-based samplers, in a space whose domains are valid.

    How much of the space the constraints exclude becomes a warning.
    """
    if problems := _model_problems(spec, warnings):
        return problems
    constraints: list[Constraint] = []
    found: list[SpecProblem] = []
    for index, text in enumerate(spec.constraints):
        try:
            constraint = parse_constraint(text)
        except ValueError as error:
            found.append(
                SpecProblem(
                    pointer=pointer(("constraints", index)),
                    code="invalid",
                    message=str(error),
                    given=shown(text),
                    allowed=ALLOWED,
                )
            )
            continue
        found += _unknown_paths(spec, constraint, index)
        constraints.append(constraint)
    if found:
        return found
    for index, point in enumerate(spec.enqueue):
        found += given_point_problems(spec, constraints, dict(point), ("enqueue", index))
    return found or _excluded(spec, constraints, warnings)


def _grid_problems(spec: ExperimentSpec, warnings: list[str]) -> list[SpecProblem]:
    try:
        size = grid_size(spec)
    except ValueError as error:
        return [SpecProblem(pointer="/space", code="grid_needs_step", message=str(error))]
    if size > MAX_GRID:
        factors = f"{size:,}" if size < 10**15 else f"about 10^{len(str(size)) - 1}"
        return [
            SpecProblem(
                pointer="/space",
                code="grid_too_large",
                message=f"the grid has {factors} points; use fewer or coarser domains, or another sampler",
                given=size if size < 2**53 else factors,
                allowed=f"at most {MAX_GRID:,} points",
            )
        ]
    size += len(spec.enqueue)
    if spec.num_trials is not None and spec.num_trials > size:
        return [
            SpecProblem(
                pointer="/num_trials",
                code="out_of_range",
                message=f"num_trials={spec.num_trials} exceeds the {size} points of the grid; lower it or leave it out",
                given=spec.num_trials,
                allowed=f"at most {size}",
            )
        ]
    if spec.num_trials is not None and spec.num_trials < size:
        warnings.append(f"num_trials={spec.num_trials} runs the first part of a grid of {size} points only")
    return []


def _model_problems(spec: ExperimentSpec, warnings: list[str]) -> list[SpecProblem]:
    """Samplers that cannot use all of the space, or not within so few trials."""
    sampler, num_trials = spec.sampler, spec.num_trials or 1
    space = parameters(spec)
    if isinstance(sampler, CMAESSampler):
        if space and not adapted(spec):
            return [
                SpecProblem(
                    pointer="/sampler/kind",
                    code="no_numeric_parameter",
                    message="cmaes adapts numeric parameters that every point has, and the space has none; use tpe",
                    given=sampler.kind,
                    allowed="random, tpe, qmc, gp, nsga2",
                )
            ]
        left_out = sorted({parameter.name for parameter in space} - {parameter.name for parameter in adapted(spec)})
        if space and num_trials <= population_size(spec, sampler):
            warnings.append(
                f"num_trials={num_trials} are at most one generation of {population_size(spec, sampler)} trials, so "
                "CMA-ES never moves"
            )
    elif isinstance(sampler, GPSampler | NSGA2Sampler | NSGA3Sampler):
        left_out = sorted(parameter.name for parameter in space if parameter.condition is not None)
    else:
        left_out = []
    if left_out:
        warnings.append(
            f"the {sampler.kind} sampler draws {', '.join(left_out)[:500]} at random, independently of the others: "
            "it has no model of choices and conditions; tpe has"
            if isinstance(sampler, CMAESSampler)
            else f"the {sampler.kind} sampler draws {', '.join(left_out)[:500]} at random, independently of the "
            "others: it has no model of parameters that only some points have; tpe has"
        )
    if isinstance(sampler, TPESampler | GPSampler) and space and num_trials <= sampler.num_startup_trials:
        name = "TPE" if isinstance(sampler, TPESampler) else "the Gaussian process"
        warnings.append(
            f"sampler.num_startup_trials={sampler.num_startup_trials} of num_trials={num_trials} trials are drawn at "
            f"random, so {name}'s model is never used"
        )
    if isinstance(sampler, NSGA2Sampler | NSGA3Sampler) and space and num_trials <= sampler.population_size:
        warnings.append(
            f"sampler.population_size={sampler.population_size} of num_trials={num_trials} trials are the first "
            "generation, which is drawn at random"
        )
    return []


def _unknown_paths(spec: ExperimentSpec, constraint: Constraint, index: int) -> list[SpecProblem]:
    """Paths of a constraint that neither the base nor any option has."""
    within = tuple(f"{path}." for path, domain in spec.space.items() if isinstance(domain, OptionsDomain))
    found: list[SpecProblem] = []
    for path in constraint.paths:
        problem = path_problem(spec.base, path)
        if problem is None or path.startswith(within):
            continue
        reason, names = problem
        found.append(
            SpecProblem(
                pointer=pointer(("constraints", index)),
                code="unknown_path",
                message=f"there is no {path[:200]!r} in base: {reason}{suggestion(path.rsplit('.', 1)[-1], names)}",
                given=shown(path),
                allowed=f"there: {', '.join(names)}" if names else None,
            )
        )
    return found


def given_point_problems(
    spec: ExperimentSpec, constraints: list[Constraint], point: dict[str, Any], at: tuple[str | int, ...]
) -> list[SpecProblem]:
    """What is wrong with a point that a user gives, in whole or in part.

    Args:
        constraints: of the spec, parsed.
        point: parameter -> value.
        at: where it stands in the user's document.
    """
    space = {parameter.name: parameter for parameter in parameters(spec)}
    found: list[SpecProblem] = []
    for name in sorted(point):
        place = pointer((*at, name))
        parameter = space.get(name)
        if parameter is None:
            found.append(
                SpecProblem(
                    pointer=place,
                    code="unknown_path",
                    message=f"{name[:200]!r} is not searched{suggestion(name, tuple(space))}",
                    given=shown(name),
                    allowed=", ".join(space)[:1000] or None,
                )
            )
        elif not holds(parameter.domain, point[name]):
            domain = parameter.domain.model_dump(exclude_defaults=True)
            found.append(
                SpecProblem(
                    pointer=place,
                    code="out_of_range",
                    message=f"{name}={point[name]!r} is not in its domain",
                    given=shown(point[name]),
                    allowed=str(domain)[:300],
                )
            )
        elif parameter.condition is not None and not active(parameter, point):
            outer, option = parameter.condition
            found.append(
                SpecProblem(
                    pointer=place,
                    code="inactive",
                    message=f"{name!r} exists only where {outer!r} is {option!r}; give that with it",
                    given=shown(point[name]),
                )
            )
    if not found and set(point) == set(draw(parameters(spec), spec.seed, 0, fixed=point)):
        problem = violation(spec, constraints, point)
        if problem is not None:
            found.append(SpecProblem(pointer=pointer(at), code="violates_constraint", message=problem))
    return found


def _excluded(spec: ExperimentSpec, constraints: list[Constraint], warnings: list[str]) -> list[SpecProblem]:
    """Tries the constraints on random points: a problem if all violate them, a warning with their share if some do."""
    if not constraints:
        return []
    space = parameters(spec)
    counts = [0] * len(constraints)
    num_violating = 0
    first = ""
    for number in range(_NUM_DRAWS if space else 1):
        try:
            document = document_at(spec, draw(space, spec.seed, -1 - number))
        except InfeasiblePoint:
            continue
        problems = [constraint.violation(document) for constraint in constraints]
        counts = [count + (problem is not None) for count, problem in zip(counts, problems, strict=True)]
        violated = next((problem for problem in problems if problem is not None), None)
        if violated is not None:
            num_violating += 1
            first = first or violated
    num_drawn = _NUM_DRAWS if space else 1
    if num_violating == num_drawn:
        return [
            SpecProblem(
                pointer="/constraints",
                code="no_valid_point",
                message=f"none of {num_drawn} random points of the space satisfies the constraints; the first: {first}",
            )
        ]
    if num_violating:
        each = "; ".join(
            f"{constraint.text!r} {count}" for constraint, count in zip(constraints, counts, strict=True) if count
        )
        what = "recorded as infeasible" if isinstance(spec.sampler, GridSampler | BruteForceSampler) else "drawn again"
        warnings.append(
            f"the constraints exclude {num_violating} of {num_drawn} random points of the space ({each}); such "
            f"proposals are {what}"
        )
    return []
