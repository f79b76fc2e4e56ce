"""Trying a space out before anything runs: does every domain hold valid values, does some point of it run at all?"""

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from orchestrator.capacity import Capacity, memory_place
from orchestrator.errors import InfeasiblePoint, SpecProblem
from orchestrator.parsing import follow, parse_domain, strict_json
from orchestrator.screening import pointer
from orchestrator.search.constraints import parse_constraint
from orchestrator.search.draw import draw
from orchestrator.search.grid import AnyDomain
from orchestrator.search.space import active, inner_domains, parameters, resolve, set_path, violation
from orchestrator.spec import ChoiceDomain, ExperimentSpec, FloatDomain, IntDomain, OptionsDomain, Scalar
from trainer.config import TrainConfig
from trainer.model.size import memory_estimate

_MAX_TRIES = 150
"""Configurations that are built in all: about 15 ms."""
_NUM_DRAWS = 30
_MAX_DRAWN_VALUES = 2000
_MAX_PARAMETERS = 200
"""Dimensions of a space, those inside of options included."""
_MAX_NESTING = 4


def check_domains(spec: ExperimentSpec) -> list[SpecProblem]:
    """Problems of domains that hold values which their own field never takes, whatever the rest of the point is."""
    found: list[SpecProblem] = []
    num_parameters = sum(_num_parameters(domain) for domain in spec.space.values())
    if num_parameters > _MAX_PARAMETERS:
        return [
            SpecProblem(
                pointer="/space",
                code="too_large",
                message=f"the space has {num_parameters} parameters, those inside of options included; vary fewer",
                given=num_parameters,
                allowed=f"at most {_MAX_PARAMETERS}",
            )
        ]
    for path in sorted(spec.space):
        found += _inner_problems(spec.space[path], ("space", path), 0)
    if found:
        return found
    document = spec.base.model_dump(mode="json")
    num_tries = 0
    for path in sorted(spec.space):
        before = _get(document, path)
        for place, value in _samples(path, spec.space[path]):
            num_tries += 1
            if num_tries > _MAX_TRIES:
                return found
            set_path(document, path, value)
            if problem := _own_problem(document, path):
                found.append(
                    SpecProblem(
                        pointer=pointer(("space", path, *place)),
                        code="never_valid",
                        message=f"{path}={_short(value)} is never valid: {problem}",
                        given=_short(value),
                    )
                )
                break
        set_path(document, path, before)
    return found


def check_points(spec: ExperimentSpec, capacity: Capacity | None, warnings: list[str]) -> list[SpecProblem]:
    """A problem if no point of the space that was tried can run; else a warning if some of them cannot."""
    if not spec.space:
        return []
    points = sample_points(spec)
    reasons = [reason for point in points if (reason := _why_not(spec, point, capacity)) is not None]
    if len(reasons) == len(points):
        return [
            SpecProblem(
                pointer="/space",
                code="no_valid_point",
                message=f"none of {len(points)} points of the space that were tried can run; the first: {reasons[0]}",
            )
        ]
    if reasons:
        warnings.append(
            f"{len(reasons)} of {len(points)} points of the space that were tried cannot run and would be infeasible "
            f"trials, e.g.: {reasons[0]}"
        )
    return []


def sample_points(spec: ExperimentSpec) -> list[dict[str, Scalar]]:
    """Two corners of the space (everything smallest, everything largest) and some draws; fewer in large spaces.

    What violates a constraint is left out, as the search leaves it out, unless nothing else is there.
    """
    space = parameters(spec)
    corners: list[dict[str, Scalar]] = []
    for end in (0, -1):
        corner: dict[str, Scalar] = {}
        for parameter in space:
            if active(parameter, corner):
                corner[parameter.name] = _bounds(parameter.domain)[end]
        corners.append(corner)
    num_draws = max(4, min(_NUM_DRAWS, _MAX_DRAWN_VALUES // max(1, len(space))))
    points = corners + [draw(space, spec.seed, -1 - index) for index in range(num_draws)]
    constraints = [parse_constraint(text) for text in spec.constraints]
    return [point for point in points if violation(spec, constraints, point) is None] or points


def _why_not(spec: ExperimentSpec, point: dict[str, Scalar], capacity: Capacity | None) -> str | None:
    try:
        config = resolve(spec, point)
    except InfeasiblePoint as error:
        return str(error)
    if capacity is None:
        return None
    needed, available = memory_estimate(config).total_gib, capacity.most_memory_gib(spec.resources)
    if needed <= available:
        return None
    return f"it needs about {needed:.3g} GiB, {memory_place(spec.resources)} has {available:.3g} GiB"


def _num_parameters(domain: Any) -> int:
    """How many parameters a domain (or what stands inside of an option, which may be no valid one) makes."""
    if isinstance(domain, OptionsDomain):
        options: Any = domain.options
    else:
        options = domain.get("options") if isinstance(domain, dict) else None
    if not isinstance(options, dict):
        return 1
    return 1 + sum(_num_parameters(inner) for value in options.values() for _, inner in inner_domains(value))


def _inner_problems(domain: AnyDomain, place: tuple[str, ...], nesting: int) -> list[SpecProblem]:
    """Problems of the domains that stand inside of options, which the spec's own types cannot see."""
    if not isinstance(domain, OptionsDomain):
        return []
    found: list[SpecProblem] = []
    for option in sorted(domain.options):
        if "." in option:
            found.append(
                SpecProblem(
                    pointer=pointer((*place, "options", option)),
                    code="invalid",
                    message=f"an option's name becomes a part of a dotted path, so {option[:80]!r} may hold no dot",
                    given=option[:200],
                )
            )
        for inner_place, inner in inner_domains(domain.options[option]):
            here = (*place, "options", option, *inner_place)
            parsed, problems = parse_domain(inner, here)
            found += problems
            if parsed is not None and nesting < _MAX_NESTING:
                found += _inner_problems(parsed, here, nesting + 1)
            elif parsed is not None:
                found.append(
                    SpecProblem(pointer=pointer(here), code="too_deep", message="options are nested too deeply")
                )
    return found


def _samples(path: str, domain: AnyDomain) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Values of a domain at its ends (of a choice or options: all of them), with their places in the domain."""
    if isinstance(domain, IntDomain | FloatDomain):
        kind = "int" if isinstance(domain, IntDomain) else "float"
        for end, value in enumerate(_bounds(domain)):
            yield (kind, end), value
    elif isinstance(domain, ChoiceDomain):
        for index, value in enumerate(domain.choice):
            yield ("choice", index), value
    else:
        for option in sorted(domain.options):
            for end in (0, -1):
                yield ("options", option), _filled_at(domain.options[option], end)


def _filled_at(value: Any, end: int) -> Any:
    """An option's value with every domain in it at one of its ends."""
    filled = value
    for place, inner in list(inner_domains(value)):
        domain, _ = parse_domain(inner, ())
        at_end = _filled_at(domain.options[_bounds(domain)[end]], end) if isinstance(domain, OptionsDomain) else None
        filled = _replaced(filled, place, _bounds(domain)[end] if at_end is None else at_end)
    return filled


def _replaced(value: Any, place: tuple[str, ...], replacement: Any) -> Any:
    if not place:
        return replacement
    key = place[0]
    if isinstance(value, dict):
        return value | {key: _replaced(value[key], place[1:], replacement)}
    return [_replaced(item, place[1:], replacement) if index == int(key) else item for index, item in enumerate(value)]


def _bounds(domain: AnyDomain) -> tuple[Any, Any]:
    if isinstance(domain, IntDomain):
        return domain.int
    if isinstance(domain, FloatDomain):
        return domain.float
    values = domain.choice if isinstance(domain, ChoiceDomain) else tuple(sorted(domain.options))
    return values[0], values[-1]


def _own_problem(document: dict[str, Any], path: str) -> str | None:
    """What is wrong with the value at `path` itself; None if nothing is, or if other fields could make it right."""
    reasons: list[str] = []
    try:
        TrainConfig.model_validate_json(strict_json(document), strict=True)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            # pydantic also names the member of a union
            place, _ = follow(document, details["loc"], is_missing=details["type"] == "missing")
            where = ".".join(str(part) for part in place)
            # A validator of a whole section weighs several fields against each other: another point may satisfy it.
            if details["type"] != "value_error" and (where == path or where.startswith(path + ".")):
                inside = where[len(path) + 1 :]
                reasons.append(f"{inside}: {details['msg']}" if inside else str(details["msg"]))
    return "; ".join(reasons) or None


def _get(document: Any, path: str) -> Any:
    for part in path.split("."):
        document = document[int(part)] if isinstance(document, list) else document.get(part)
    return document


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."
