"""What a search may learn of other experiments' trials: those that lie in its space and were judged as it judges.

They are told to the sampler as if they had ended before the first trial. What is used is copied when the experiment is
submitted, so that what happens to the others afterwards changes no proposal.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.objective import FurtherObjective, Objective
from orchestrator.search.draw import holds
from orchestrator.search.outcome import CANNOT_RUN, figure_of
from orchestrator.search.points import as_trials
from orchestrator.search.space import active, parameters
from orchestrator.spec import ExperimentSpec, OptionsDomain, Scalar
from orchestrator.states import Cause, TrialState
from orchestrator.store.records import RungRecord, TrialKind, TrialRecord

MAX_TRIALS = 10_000
"""Most trials that a search starts with."""
_SUMMARY_FIELDS = (
    "final_loss",
    "initial_bits_per_byte",
    "bits_per_byte",
    "worst_max_violation",
    "min_token_entropy",
    "min_load_entropy",
    "max_dead_fraction",
    "num_spikes",
    "tokens_per_s",
    "training_duration_s",
    "total_parameters",
    "active_parameters",
    "flops_per_token",
)
"""What limits and further objectives can be about."""
_SHOWN_PATHS = 5


@dataclass(frozen=True, kw_only=True)
class WarmTrial:
    """A trial of another experiment as the sampler is told of it. Fields are those of TrialRecord.

    Attributes:
        params: in the space of the experiment that learns from it.
        rungs: training tokens and value at each of its rungs.
    """

    experiment_id: str
    trial_id: str
    number: int
    state: TrialState
    cause: Cause | None
    params: dict[str, Scalar]
    objective: float | None
    objective_tokens: int | None
    further_values: list[float | None] | None
    summary: dict[str, Any] | None
    rungs: tuple[tuple[int, float | None], ...]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Trials of an experiment that are not used, and why."""

    experiment_id: str
    num_trials: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What a search starts with.

    Attributes:
        trials: in the order in which they are told.
        warnings: what differs between the experiments beside the space, one sentence each.
    """

    trials: tuple[WarmTrial, ...]
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...] = ()

    def records(self) -> list[TrialRecord]:
        """The trials as records that ended before all others: their numbers are negative."""
        return [_record(trial, index - len(self.trials)) for index, trial in enumerate(self.trials)]


@dataclass(frozen=True, kw_only=True)
class Source:
    """An experiment to learn from."""

    experiment_id: str
    spec: ExperimentSpec
    trials: Sequence[TrialRecord]


def warm_start(spec: ExperimentSpec, sources: Sequence[Source]) -> WarmStart:
    """Which trials of `sources` a search of `spec` learns from."""
    used: list[WarmTrial] = []
    skipped: list[Skipped] = []
    warnings: list[str] = []
    for source in sources:
        reasons: Counter[str] = Counter()
        num_before = len(used)
        for trial in as_trials(source.spec, source.trials):
            if trial.kind is TrialKind.BASELINE:
                continue
            found = _used(spec, source, trial) if len(used) < MAX_TRIALS else f"more than {MAX_TRIALS:,} trials"
            if isinstance(found, str):
                reasons[found] += 1
            else:
                used.append(found)
        skipped += [
            Skipped(experiment_id=source.experiment_id, num_trials=count, reason=reason)
            for reason, count in sorted(reasons.items())
        ]
        different = _differences(spec, source.spec)
        if len(used) > num_before and different:
            more = f" and {len(different) - _SHOWN_PATHS} more" if len(different) > _SHOWN_PATHS else ""
            warnings.append(
                f"warm_start: trials of {source.experiment_id} ran with another {', '.join(different[:_SHOWN_PATHS])}"
                f"{more} than base has, so their values may not compare with those of this experiment"
            )
    if sources and not used:
        warnings.append("warm_start: none of the named experiments' trials can be used, so the search starts cold")
    return WarmStart(trials=tuple(used), skipped=tuple(skipped), warnings=tuple(warnings))


def point_in(spec: ExperimentSpec, trial: TrialRecord) -> dict[str, Scalar] | str:
    """A trial's point in the space of `spec`, or why it has none there.

    What the trial did not search is read off its configuration; what only it searched has to be as the base has it.
    """
    point: dict[str, Scalar] = {}
    for parameter in parameters(spec):
        if not active(parameter, point):
            continue
        name = parameter.name
        if name in trial.params:
            value: Any = trial.params[name]
        elif parameter.condition is None and not isinstance(parameter.domain, OptionsDomain):
            value = value_at(trial.config, name)
        else:
            return f"{name} was not searched there"
        if not holds(parameter.domain, value):
            return f"{name} is outside of the space"
        point[name] = value
    base = spec.base.model_dump(mode="json")
    for name in sorted(trial.params.keys() - point.keys()):
        if value_at(base, name) != trial.params[name]:
            return f"{name} was searched there and is fixed here"
    return point


def _used(spec: ExperimentSpec, source: Source, trial: TrialRecord) -> WarmTrial | str:
    """A trial as it is told, or why it is not."""
    if _judged(source.spec.objective) != _judged(spec.objective):
        return "judged by another objective"
    if trial.state is TrialState.COMPLETED:
        if trial.objective is None:
            return "without a value of the objective"
    elif not (trial.state is TrialState.PRUNED and trial.cause is not Cause.USER) and trial.cause not in CANNOT_RUN:
        return "not ended" if trial.finished_at_ms is None else "ended without a result"
    point = point_in(spec, trial)
    if isinstance(point, str):
        return point
    further: list[float | None] | None = None
    if spec.further_objectives and trial.state is TrialState.COMPLETED:
        further = [_further_value(objective, source.spec, trial) for objective in spec.further_objectives]
        if None in further:
            missing = spec.further_objectives[further.index(None)]
            return f"without a value of {missing.metric} ({missing.domain})"
    return WarmTrial(
        experiment_id=source.experiment_id,
        trial_id=trial.id,
        number=trial.number,
        state=trial.state,
        cause=trial.cause,
        params=point,
        objective=trial.objective,
        objective_tokens=trial.objective_tokens,
        further_values=further,
        summary=None
        if trial.summary is None
        else {field: trial.summary[field] for field in _SUMMARY_FIELDS if field in trial.summary},
        rungs=tuple((rung.tokens, rung.value) for rung in trial.rungs),
    )


def _judged(objective: Objective | FurtherObjective) -> tuple[str, ...]:
    return (objective.metric, objective.domain, objective.direction, objective.value.model_dump_json())


def _further_value(objective: FurtherObjective, there: ExperimentSpec, trial: TrialRecord) -> float | None:
    if not objective.metric.startswith("eval/"):
        return figure_of(objective.metric, trial.summary)
    values = (trial.objective, *(trial.further_values or ()))
    for other, value in zip((there.objective, *there.further_objectives), values, strict=False):
        if _judged(other) == _judged(objective):
            return value
    return None


def _record(trial: WarmTrial, number: int) -> TrialRecord:
    rungs = tuple(
        RungRecord(
            trial_id=trial.trial_id,
            trial_number=number,
            trial_kind=TrialKind.SEARCH,
            batch=None,
            rung=index,
            run_id="",
            tokens=tokens,
            value=value,
            sequence=-1,
            decision=None,
            explanation=None,
            at_ms=0,
        )
        for index, (tokens, value) in enumerate(trial.rungs)
    )
    return TrialRecord(
        id=trial.trial_id,
        experiment_id=trial.experiment_id,
        number=number,
        kind=TrialKind.SEARCH,
        label=None,
        batch=None,
        state=trial.state,
        cause=trial.cause,
        reason="",
        since_ms=0,
        epoch=0,
        params=trial.params,
        config=None,
        config_fingerprint=None,
        asked_sequence=-1,
        finished_sequence=-1,
        objective=trial.objective,
        objective_tokens=trial.objective_tokens,
        summary=trial.summary,
        num_retries=0,
        created_at_ms=0,
        started_at_ms=0,
        finished_at_ms=0,
        rungs=rungs,
        further_values=trial.further_values,
    )


def _differences(spec: ExperimentSpec, other: ExperimentSpec) -> list[str]:
    """Paths where the two bases differ and neither space decides; the seed and how often is logged play no part."""
    searched = tuple(f"{path}." for path in {*spec.space, *other.space})
    here, there = _leaves(spec.base.model_dump(mode="json")), _leaves(other.base.model_dump(mode="json"))
    return [
        path
        for path in sorted({*here, *there})
        if here.get(path) != there.get(path)
        and not f"{path}.".startswith((*searched, "seed.", "loop.log_every_steps."))
    ]


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        items = value.items()
    elif isinstance(value, list) and value:
        items = enumerate(value)
    else:
        return {path: value}
    return {
        leaf: item
        for key, inner in items
        for leaf, item in _leaves(inner, f"{path}.{key}" if path else str(key)).items()
    }


def value_at(document: Any, path: str) -> Any:
    """The value at a dotted path of a dumped configuration, None if there is none."""
    for part in path.split("."):
        if isinstance(document, Mapping):
            document = document.get(part)
        elif isinstance(document, list) and part.isdigit() and int(part) < len(document):
            document = document[int(part)]
        else:
            return None
    return document
