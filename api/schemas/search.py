"""What the search found: analyses, and extending it."""

from typing import Annotated, Any, Literal

from pydantic import Field

from api.schemas.wire import Answer, EpochMs, Question, Scalar


class ExtendRequest(Question):
    """More trials for an ended experiment."""

    num_trials: int = Field(ge=1, le=100_000)
    """Trials of the search in all, those that it has made included."""
    space: dict[str, Any] = Field(default_factory=dict, max_length=200)
    """Dotted path -> domain, in place of the present one or beside it; every trial there is has to lie in it."""


class AnalysedObjective(Answer):
    """One of the objectives, the first one first."""

    metric: str
    domain: str
    direction: Literal["minimize", "maximize"]


class Improvement(Answer):
    """A trial that was better than all that had completed before it."""

    trial_id: str
    number: int
    objective: float
    num_completed: int
    """Completed trials by then, itself included."""
    tokens: int
    """Training tokens of all trials that had ended by then."""
    finished_at_ms: EpochMs


class FrontPoint(Answer):
    """A trial on the Pareto front."""

    trial_id: str
    number: int
    values: list[float]
    """One per objective."""


class Slices(Answer):
    """The trials as columns of equal length: a parameter's column against the objective's is its slice."""

    num_trials: int
    """Rows."""
    num_eligible: int
    """Of how many trials they were taken, evenly over their order, the best included."""
    basis: str
    trial_ids: list[str]
    numbers: list[int]
    states: list[Literal["completed", "pruned"]]
    objective: list[float | None]
    objective_tokens: list[int | None]
    further_values: list[list[float | None]]
    """A column per objective beside the first."""
    params: dict[str, list[Scalar]]
    """Parameter -> its column; null where it does not exist."""


class ParameterImportance(Answer):
    """A parameter's share of the importance of all in its list."""

    name: str
    importance: float
    low: float
    """Smallest share over resamples of the trials."""
    high: float


class Importance(Answer):
    """What one method says of one objective."""

    method: Literal["ped_anova", "fanova"]
    objective: int | None
    """Index of the objective; null: of reaching the Pareto front."""
    condition: str | None
    """Of parameters inside of an option: where they exist. Null: of those that every point has."""
    num_trials: int
    basis: str
    parameters: list[ParameterImportance]
    """The most important first; empty where there is a problem."""
    problem: str | None


class Analysis(Answer):
    """What an experiment's trials show."""

    objectives: list[AnalysedObjective]
    num_completed: int
    num_trials: int
    """Trials of the search (points, where they have several seeds)."""
    best_so_far: list[Improvement]
    best_basis: str
    front: list[FrontPoint]
    """Empty with one objective."""
    front_basis: str
    slices: Slices
    importance: list[Importance]


class AnalysisRead(Answer):
    """The newest analysis of an experiment, and whether it is about its trials as they are now."""

    experiment_id: str
    state: Literal["current", "stale", "pending"]
    """`stale`: of earlier trials; a newer one is being worked out. `pending`: the first one is."""
    sequence: int | None
    """Counts what happened in the experiment by then."""
    at_ms: EpochMs | None
    problem: str | None
    """Why the last attempt gave none."""
    analysis: Analysis | None


class SkippedTrials(Answer):
    """Trials of another experiment that the search does not learn from."""

    experiment_id: str
    num_trials: Annotated[int, Field(ge=0)]
    reason: str


class WarmStartRead(Answer):
    """What the search learned from other experiments before its first trial."""

    num_used: int
    used: dict[str, int]
    """Experiment -> how many of its trials are used."""
    skipped: list[SkippedTrials]
