"""Rows of the model store: those fields of the real records that the protocol rests on."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from orchestrator.states import Cause, ExperimentState, RunState, TrialState
from orchestrator.store.records import RungDecision, TrialKind

Row = TypeVar("Row")


def copied(row: Row) -> Row:
    """A shallow copy; an order of magnitude faster than `copy.copy`, which is most of what a simulation would do."""
    new: Any = object.__new__(type(row))
    new.__dict__.update(row.__dict__)
    return new


@dataclass
class Experiment:
    """See `orchestrator.store.records.ExperimentRecord`."""

    id: str
    spec: dict[str, Any]
    key: str | None
    fingerprint: str | None
    state: ExperimentState = ExperimentState.QUEUED
    reason: str = ""
    sequence: int = 0
    epoch: int = 0
    lease_owner: str | None = None
    lease_until_ms: int | None = None
    lease_boot_id: str | None = None
    is_to_resume: bool = False
    """A wish that was made while it was pausing."""


@dataclass
class Trial:
    """See `orchestrator.store.records.TrialRecord`."""

    id: str
    experiment_id: str
    number: int
    batch: int | None
    params: dict[str, Any]
    asked_sequence: int
    epoch: int
    kind: TrialKind = TrialKind.SEARCH
    state: TrialState = TrialState.QUEUED
    cause: Cause | None = None
    reason: str = ""
    finished_sequence: int | None = None
    finished_at_ms: int | None = None
    objective: float | None = None
    objective_tokens: int | None = None
    num_retries: int = 0
    rungs: "tuple[Rung, ...]" = ()
    point: int | None = None
    replica: int | None = None
    parent_trial_id: str | None = None
    parent_checkpoint_id: str | None = None
    summary: None = None
    further_values: None = None


@dataclass
class Run:
    """See `orchestrator.store.records.RunRecord`."""

    id: str
    trial_id: str
    experiment_id: str
    trial_number: int
    number: int
    epoch: int
    folder: str
    resumed_from_step: int | None
    stop_at_tokens: int | None
    state: RunState = RunState.STARTING
    cause: Cause | None = None
    reason: str = ""


@dataclass
class Rung:
    """See `orchestrator.store.records.RungRecord`."""

    trial_id: str
    trial_number: int
    rung: int
    run_id: str
    tokens: int
    value: float | None
    sequence: int
    decision: RungDecision | None
    explanation: str | None
    trial_kind: TrialKind = TrialKind.SEARCH
    at_ms: int = 0


@dataclass
class Checkpoint:
    """See `orchestrator.store.records.CheckpointRecord`."""

    id: str
    trial_id: str
    run_id: str
    step: int
    tokens: int
    folder: str
    manifest_sha256: str
    state: str = "committed"


@dataclass
class Event:
    """See `orchestrator.store.records.EventRecord`."""

    id: int
    kind: str
    experiment_id: str | None
    trial_id: str | None
    run_id: str | None
    data: dict[str, Any] = field(default_factory=dict)
