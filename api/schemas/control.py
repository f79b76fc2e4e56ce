"""Pausing, cancelling, trying again, priorities: what is asked and what is answered."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from api.schemas.problems import Problem
from api.schemas.wire import Answer, EpochMs, Question, Scalar
from orchestrator.states import ExperimentState, TrialState

Ids = Annotated[list[Annotated[str, Field(min_length=1, max_length=32)]], Field(min_length=1, max_length=1000)]
Priority = Annotated[int, Field(ge=-100, le=100)]


class StopRequest(Question):
    """How long running trials may take to write a checkpoint and end."""

    deadline_s: float | None = Field(default=None, ge=1, le=86_400)
    """Then they are killed; null: 60 s to pause, or to stop one trial; 30 s to cancel."""


class PriorityRequest(Question):
    """What an experiment is to have."""

    priority: Priority
    """Free places go to the highest first; 0 is where all begin."""


class ExperimentFilter(Question):
    """Experiments by what they are like; all that is given has to hold."""

    states: list[ExperimentState] | None = None
    owner: str | None = Field(default=None, max_length=80)
    name_contains: str | None = Field(default=None, max_length=120)


class ManyExperiments(Question):
    """Which experiments: by id, or by what they are like."""

    ids: Ids | None = None
    filter: ExperimentFilter | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "ManyExperiments":
        _check_one(self.ids, self.filter)
        return self


class StopMany(ManyExperiments):
    """Which experiments, and how long their trials may take."""

    deadline_s: float | None = Field(default=None, ge=1, le=86_400)


class PrioritizeMany(ManyExperiments):
    """Which experiments, and what they are to have."""

    priority: Priority


class TrialFilter(Question):
    """Trials of an experiment by their states."""

    experiment_id: str = Field(min_length=1, max_length=32)
    states: list[TrialState] | None = None


class ManyTrials(Question):
    """Which trials: by id, or by experiment and state."""

    ids: Ids | None = None
    filter: TrialFilter | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "ManyTrials":
        _check_one(self.ids, self.filter)
        return self


class StopManyTrials(ManyTrials):
    """Which trials, and how long they may take."""

    deadline_s: float | None = Field(default=None, ge=1, le=86_400)


class BulkAnswer(Answer):
    """What became of one of many."""

    id: str
    ok: bool
    state: str | None
    """Its state now; null if there is no such thing."""
    trial_id: str | None
    """The trial that tries it again, where that was asked for."""
    problem: Problem | None
    """Why not, as the single request would have answered."""


class BulkAnswers(Answer):
    """One answer per experiment or trial, in the order of the ids."""

    items: list[BulkAnswer]


class AddRequest(Question):
    """A point by hand."""

    params: dict[str, Scalar] = Field(default_factory=dict, max_length=200)
    """Parameter -> value, as in a trial's `params`; what is left out is drawn at random."""
    label: str | None = Field(default=None, min_length=1, max_length=80, pattern=r"^[^\x00-\x1f]+$")
    """Its name in tables."""


class CommandRead(Answer):
    """A wish of a user, and what became of it."""

    id: int
    kind: Literal["pause", "resume", "cancel", "kill", "prioritize", "stop", "retry", "add"]
    trial_id: str | None
    """The trial it is about; of `retry` and `add` the one that it made."""
    payload: dict[str, Any]
    state: Literal["pending", "applied", "rejected"]
    reason: str
    """Why it was rejected."""
    created_at_ms: EpochMs
    applied_at_ms: EpochMs | None
    """When it was applied or rejected."""


class CommandList(Answer):
    """The wishes about an experiment and its trials, oldest first."""

    items: list[CommandRead]


class Amounts(Answer):
    """Of the cluster."""

    cpus: float
    gpus: float
    memory_gib: float


class QueueEntry(Answer):
    """An experiment that wants places, or holds some."""

    experiment_id: str
    name: str
    state: ExperimentState
    owner: str
    priority: int
    num_workers: int
    """Of one of its trials."""
    per_worker: Amounts
    num_running: int
    """Trials that hold their places."""
    num_starts: int
    """Trials of it that start now, or as soon as its driver asks."""
    num_ahead: int
    reason: str
    """Why no more of them start; empty if nothing of it waits."""


class QueueRead(Answer):
    """Who waits for places of the cluster, in the order in which they are given out; then who only holds some."""

    is_served: bool
    """An orchestrator reports: what is queued gets its turn."""
    total: Amounts | None
    """Null while the cluster is not known."""
    used: Amounts
    """By the trials that run, as counted."""
    items: list[QueueEntry]


def _check_one(ids: object, chosen: object) -> None:
    if (ids is None) == (chosen is None):
        raise ValueError("give either ids or a filter")
