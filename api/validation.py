"""The answer to `experiments:validate`: an admitted spec with what it will take."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from api.answers import warm_start_read
from api.schemas.experiments import (
    BaselineMatch,
    DeviceFit,
    Estimated,
    MemoryNeeded,
    ParameterCounts,
    RungPreview,
    SampledPoint,
    SearchedParameter,
    SearchPhase,
    Validation,
)
from orchestrator import estimate as estimates
from orchestrator import preview
from orchestrator.admission import Admitted
from orchestrator.capacity import Capacity
from orchestrator.search.matches import baseline_matches
from orchestrator.search.rungs import rung_tokens
from orchestrator.search.space import Parameter, parameters
from orchestrator.search.warm_start import WarmStart
from orchestrator.spec import ChoiceDomain, FloatDomain, IntDomain, Resources


def validation(
    admitted: Admitted,
    capacity: Capacity | None,
    summaries: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    warm: WarmStart | None = None,
) -> Validation:
    """What submitting the spec would mean.

    Args:
        capacity: what the cluster holds, as far as it is known.
        summaries: resources and RunSummary of trials that ran here; those with the same resources tell the pace.
        warm: what the search would start with.
    """
    spec = admitted.spec
    measured = [
        estimates.Measured(flops_per_token=summary["flops_per_token"], tokens_per_s=summary["tokens_per_s"])
        for used, summary in summaries
        if summary.get("tokens_per_s")
        and summary.get("flops_per_token")
        and Resources.model_validate(used) == spec.resources
    ]
    found = estimates.estimate(spec, capacity=capacity, measured=measured)
    warm_warnings = [] if warm is None else list(warm.warnings)
    return Validation(
        spec=spec.model_dump(mode="json"),
        num_trials=found.num_trials,
        num_baselines=found.num_baselines,
        baseline_matches=[
            BaselineMatch(
                baseline=name,
                match=twin.match,
                hidden_dim=twin.hidden_dim,
                base_value=twin.target,
                value=twin.value,
                residual=twin.residual,
            )
            for name, twin in baseline_matches(spec)
        ],
        space=[_dimension(parameter) for parameter in parameters(spec)],
        parameters=ParameterCounts.model_validate(asdict(found.parameters)),
        total_parameters=_estimated(found.total_parameters),
        flops_per_token=found.flops_per_token,
        tokens=_estimated(found.tokens),
        training_flops=_estimated(found.training_flops),
        memory=MemoryNeeded.model_validate(asdict(found.memory)),
        peak_memory=_estimated(found.peak_memory),
        duration=_estimated(found.duration),
        disk=_estimated(found.disk),
        max_parallel_trials=_estimated(found.max_parallel_trials),
        trial_range=_estimated(preview.trial_range(spec, capacity)),
        device_hours=_estimated(preview.device_hours(spec, found)),
        devices=[DeviceFit(**vars(fit)) for fit in preview.device_fits(spec, capacity)],
        sample=[_sampled(point) for point in preview.sampled_points(spec, capacity)],
        phases=[SearchPhase(**vars(phase)) for phase in preview.phases(spec)],
        rungs=[RungPreview(**vars(rung)) for rung in preview.rung_previews(spec)],
        warm_start=None if warm is None else warm_start_read(warm),
        rung_tokens=list(rung_tokens(spec)),
        warnings=[*admitted.warnings, *warm_warnings],
    )


def _sampled(point: preview.SampledPoint) -> SampledPoint:
    config = None if point.config is None else point.config.model_dump(mode="json")
    return SampledPoint.model_validate({**vars(point), "config": config})


def _estimated(figure: estimates.Estimated) -> Estimated:
    return Estimated.model_validate(asdict(figure))


def _dimension(parameter: Parameter) -> SearchedParameter:
    domain = parameter.domain
    if isinstance(domain, IntDomain | FloatDomain):
        kind, bounds = ("int", domain.int) if isinstance(domain, IntDomain) else ("float", domain.float)
        words = f"{bounds[0]} to {bounds[1]}"
        if domain.log:
            words += ", logarithmic"
        if domain.step not in (None, 1):
            words += f", in steps of {domain.step}"
    elif isinstance(domain, ChoiceDomain):
        kind, words = "choice", ", ".join(str(value) for value in domain.choice[:20])
        if len(domain.choice) > 20:
            words += f", ... ({len(domain.choice)} values)"
    else:
        kind, words = "options", ", ".join(domain.options)
    if parameter.condition is not None:
        words += f" (where {parameter.condition[0]} is {parameter.condition[1]})"
    return SearchedParameter.model_validate({"path": parameter.name, "kind": kind, "domain": words})
