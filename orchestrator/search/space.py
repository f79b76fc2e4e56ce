"""The search space as a flat list of parameters, and the way from a point of it to a complete TrainConfig.

Parameters are taken in the order of their names, never in that of the document: a database may keep a document's keys
in an order of its own, and a proposal may not depend on it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import InfeasiblePoint
from orchestrator.parsing import strict_json
from orchestrator.search.constraints import Constraint
from orchestrator.spec import (
    Baseline,
    ChoiceDomain,
    Domain,
    ExperimentSpec,
    FloatDomain,
    IntDomain,
    OptionsDomain,
    Scalar,
    domain_kind,
)
from trainer.config import TrainConfig
from trainer.config.precision import QuantizedExpertsSection
from trainer.config.section import Section
from trainer.model.matched import MatchedTwin, matched_twin

DOMAIN = TypeAdapter[IntDomain | FloatDomain | ChoiceDomain | OptionsDomain](Domain)
"""Parses a domain that stands inside an option."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One dimension of the search space.

    Attributes:
        name: dotted path; inside option `o` of path `p` it is `p.o.<place in the option>`.
        domain: what it can be; of an options domain the point holds the option's name.
        condition: the parameter and the option it must have chosen for this one to exist, or None if it always does.
    """

    name: str
    domain: IntDomain | FloatDomain | ChoiceDomain | OptionsDomain
    condition: tuple[str, str] | None = None


def parameters(spec: ExperimentSpec) -> tuple[Parameter, ...]:
    """Every parameter, each after the one it depends on; otherwise by name."""
    found: list[Parameter] = []
    for path in sorted(spec.space):
        found.extend(_flatten(path, spec.space[path], None))
    return tuple(found)


def active(parameter: Parameter, point: Mapping[str, Scalar]) -> bool:
    """True if the parameter exists at a point whose earlier parameters are known."""
    return parameter.condition is None or point.get(parameter.condition[0]) == parameter.condition[1]


def resolve(spec: ExperimentSpec, params: Mapping[str, Scalar]) -> TrainConfig:
    """The complete configuration of the point `params`.

    Raises:
        InfeasiblePoint: the point makes no valid configuration; the message lists why.
    """
    return _validated(spec, document_at(spec, params))


def document_at(spec: ExperimentSpec, params: Mapping[str, Scalar]) -> dict[str, Any]:
    """The configuration of the point `params` as plain values, whether it is a valid one or not.

    Raises:
        InfeasiblePoint: the point leaves something open.
    """
    document = spec.base.model_dump(mode="json")
    for path in sorted(spec.space):
        set_path(document, path, _value(path, spec.space[path], params))
    return document


def violation(spec: ExperimentSpec, constraints: Sequence[Constraint], point: Mapping[str, Scalar]) -> str | None:
    """Why the point violates the first of `constraints` that it does; None if it satisfies them all."""
    if not constraints:
        return None
    try:
        document = document_at(spec, point)
    except InfeasiblePoint:
        return None
    return next((found for one in constraints if (found := one.violation(document)) is not None), None)


def baseline_configs(spec: ExperimentSpec) -> tuple[tuple[str, TrainConfig], ...]:
    """Name and complete configuration of every baseline; raises InfeasiblePoint for one that is not valid."""
    return tuple((baseline.name, baseline_config(spec, baseline)) for baseline in spec.baselines)


def baseline_config(spec: ExperimentSpec, baseline: Baseline) -> TrainConfig:
    """The base with some values set, or its matched twin; raises InfeasiblePoint if that is not valid.

    A dense twin of a base whose experts are quantised trains in the precision of the base's other parts.
    """
    config = _with_values(spec, baseline)
    twin = baseline_twin(spec, baseline)
    if twin is None:
        return config
    document = config.model_dump(mode="json") | {"model": twin.model.model_dump(mode="json")}
    if twin.model.moe is None and isinstance(config.precision, QuantizedExpertsSection):
        document["precision"] = {"kind": config.precision.rest}  # without experts there is nothing else to cast
    return _validated(spec, document)


def baseline_twin(spec: ExperimentSpec, baseline: Baseline) -> MatchedTwin | None:
    """The twin that a baseline with `match` derives, with the baseline's values set; None for one without `match`.

    Raises:
        InfeasiblePoint: there is no such twin.
    """
    if baseline.match is None:
        return None
    try:
        return matched_twin(
            spec.base,
            match=baseline.match,
            granularity=baseline.granularity,
            num_experts=baseline.num_experts,
            start=_with_values(spec, baseline),
        )
    except ValidationError as error:
        raise InfeasiblePoint(_reasons(error)) from error
    except ValueError as error:
        raise InfeasiblePoint(str(error)) from error


def _with_values(spec: ExperimentSpec, baseline: Baseline) -> TrainConfig:
    document = spec.base.model_dump(mode="json")
    for path, value in sorted(baseline.set.items()):
        set_path(document, path, value)
    return _validated(spec, document)


def path_problem(base: TrainConfig, path: str) -> tuple[str, tuple[str, ...]] | None:
    """Why `path` does not exist in `base`, with the names that are possible at that place; None if it exists."""
    place: Any = base
    walked: list[str] = []
    for part in path.split("."):
        here = ".".join(walked) or "base"
        if isinstance(place, Section):
            names = tuple(type(place).model_fields)
            if part not in names:
                return f"{here} has no field {part[:80]!r}", names
            place = getattr(place, part)
        elif isinstance(place, dict):
            place = place.get(part)  # keys of a mapping are checked with its values
        elif isinstance(place, tuple):
            if not (part.isascii() and part.isdigit() and int(part) < len(place)):
                names = tuple(str(index) for index in range(len(place)))
                return f"{here} is a list of {len(place)}; there is no {part[:80]!r}", names
            place = place[int(part)]
        elif place is None:
            return f"base has {here}: null, so there is nothing inside", ()
        else:
            return f"{here} is a plain value; there is nothing inside", ()
        walked.append(part)
    return None


def set_path(document: dict[str, Any], path: str, value: Any) -> None:
    """Sets the value at a dotted path of a dumped config; raises InfeasiblePoint if its parent is not there."""
    *parents, last = path.split(".")
    place: Any = document
    try:
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        if isinstance(place, list):
            place[int(last)] = value
        else:
            place[last] = value
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InfeasiblePoint(f"there is no {path!r} in the configuration") from error


def inner_domains(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The domains that stand inside an option's value: place -> domain as parsed JSON. Not those inside of them."""
    if domain_kind(value) is not None:
        yield place, value
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield from inner_domains(value[key], (*place, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from inner_domains(item, (*place, str(index)))


def _flatten(name: str, domain: Any, condition: tuple[str, str] | None) -> Iterator[Parameter]:
    yield Parameter(name=name, domain=domain, condition=condition)
    if isinstance(domain, OptionsDomain):
        for option in sorted(domain.options):
            for place, inner in inner_domains(domain.options[option]):
                inner_name = ".".join((name, option, *place))
                yield from _flatten(inner_name, DOMAIN.validate_python(inner), (name, option))


def _value(name: str, domain: Any, params: Mapping[str, Scalar]) -> Any:
    if name not in params:
        raise InfeasiblePoint(f"the point has no value for {name!r}")
    chosen = params[name]
    if not isinstance(domain, OptionsDomain):
        return chosen
    if chosen not in domain.options:
        raise InfeasiblePoint(f"{name!r} has no option {chosen!r}; there are: {', '.join(sorted(domain.options))}")
    return _filled(domain.options[str(chosen)], f"{name}.{chosen}", params)


def _filled(value: Any, name: str, params: Mapping[str, Scalar]) -> Any:
    """An option's value with every domain in it replaced by what the point says."""
    if domain_kind(value) is not None:
        return _value(name, DOMAIN.validate_python(value), params)
    if isinstance(value, Mapping):
        return {key: _filled(item, f"{name}.{key}", params) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, f"{name}.{index}", params) for index, item in enumerate(value)]
    return value


def worker_problem(config: TrainConfig, num_workers: int) -> str | None:
    """Why the global batch cannot be shared out over the workers, or None if it can."""
    batch, micro = config.loop.global_batch_size, config.loop.micro_batch_size
    if batch % (num_workers * micro) == 0:
        return None
    return (
        f"num_workers={num_workers} with micro_batch_size={micro} does not divide global_batch_size={batch}; every "
        f"worker takes a whole number of micro-batches, so at most {batch // micro} workers, in a divisor of that"
    )


def _validated(spec: ExperimentSpec, document: dict[str, Any]) -> TrainConfig:
    try:
        config = TrainConfig.model_validate_json(strict_json(document), strict=True)
    except ValidationError as error:
        raise InfeasiblePoint(_reasons(error)) from error
    if problem := worker_problem(config, spec.resources.num_workers):
        raise InfeasiblePoint(problem)
    return config


def _reasons(error: ValidationError) -> str:
    reasons = []
    for problem in error.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        reasons.append(f"{where}: {message}" if where else message)
    return "; ".join(reasons)
