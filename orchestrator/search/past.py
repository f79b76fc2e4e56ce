"""What a proposal learns from: the trials of its experiment, in its present space, after those of a warm start."""

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.search.space import parameters
from orchestrator.search.warm_start import WarmStart, value_at
from orchestrator.spec import ExperimentSpec, OptionsDomain
from orchestrator.store.records import TrialKind, TrialRecord


def past_of(
    spec: ExperimentSpec, history: Sequence[TrialRecord], *, warm: WarmStart | None = None
) -> Sequence[TrialRecord]:
    """The history that `propose` takes.

    A trial that was proposed before the space got further paths has the base's values there, which it ran with.

    Args:
        history: every trial of the experiment.
        warm: what the experiment started with, None for nothing.
    """
    always = {
        parameter.name
        for parameter in parameters(spec)
        if parameter.condition is None and not isinstance(parameter.domain, OptionsDomain)
    }
    base = spec.base.model_dump(mode="json")
    found: list[TrialRecord] = [] if warm is None else warm.records()
    for trial in history:
        missing = always - trial.params.keys() if trial.kind is TrialKind.SEARCH else ()
        if missing:
            trial = replace(trial, params={**trial.params, **{name: value_at(base, name) for name in sorted(missing)}})
        found.append(trial)
    return found
