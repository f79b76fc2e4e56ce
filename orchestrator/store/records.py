"""What the store gives back: frozen records, one kind per table, and the two answers that are decided outside of it.

Fields are the columns of models.py (see there for their meaning), with states as enums. Times are UTC milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from orchestrator.spec import Scalar
from orchestrator.states import Cause, ExperimentState, RunState, TrialState
from trainer.config import TrainConfig

R = TypeVar("R")


class TrialKind(StrEnum):
    """Where a trial's configuration comes from."""

    SEARCH = "search"
    BASELINE = "baseline"
    ADDED = "added"
    """By hand: a point that a user asked for, or a failed trial tried again. No part of the search, never stopped
    early."""


class RungDecision(StrEnum):
    """What becomes of a trial that arrived at a rung."""

    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The answer to an arrival at a rung, with one sentence that says why."""

    decision: RungDecision
    explanation: str


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A point of the search space.

    Attributes:
        params: parameter path -> plain value (an options domain: the option's name).
        config: the complete configuration, or None if the point makes no valid one.
        problem: why there is no config, or None.
        point, replica: which point it is and which of its seeds, where points are tried with several.
        parent: the checkpoint of another trial that it goes on from, or None.
    """

    params: dict[str, Scalar]
    config: TrainConfig | None
    problem: str | None = None
    point: int | None = None
    replica: int | None = None
    parent: "CheckpointRecord | None" = None


@dataclass(frozen=True, kw_only=True)
class Page(Generic[R]):
    """A part of a list, and the cursor of the part after it (None: this was the last)."""

    items: tuple[R, ...]
    next_cursor: str | None


@dataclass(frozen=True, kw_only=True)
class ExperimentRecord:
    """A row of `experiments`. `trial_counts` has every state that at least one trial is in."""

    id: str
    name: str
    state: ExperimentState
    reason: str
    since_ms: int
    document: dict[str, Any]
    spec: dict[str, Any]
    warnings: tuple[str, ...]
    sequence: int
    epoch: int
    lease_owner: str | None
    lease_until_ms: int | None
    lease_boot_id: str | None
    mlflow_experiment_id: str | None
    created_at_ms: int
    finished_at_ms: int | None
    trial_counts: Mapping[TrialState, int]
    spec_version: int = 0
    owner: str = "local"
    priority: int = 0
    last_turn: int = 0
    wants_run: bool = True
    stop_within_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What became of a submit: the experiment, and whether it was there already under the same key."""

    experiment: ExperimentRecord
    replayed: bool


@dataclass(frozen=True, kw_only=True)
class RungRecord:
    """A row of `rungs`, with number, kind and batch of its trial. `decision` is None while a batch is incomplete."""

    trial_id: str
    trial_number: int
    trial_kind: TrialKind
    batch: int | None
    rung: int
    run_id: str
    tokens: int
    value: float | None
    sequence: int
    decision: RungDecision | None
    explanation: str | None
    at_ms: int


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A row of `trials`, with its rungs in ascending order."""

    id: str
    experiment_id: str
    number: int
    kind: TrialKind
    label: str | None
    batch: int | None
    state: TrialState
    cause: Cause | None
    reason: str
    since_ms: int
    epoch: int
    params: dict[str, Scalar]
    config: dict[str, Any] | None
    config_fingerprint: str | None
    asked_sequence: int
    finished_sequence: int | None
    objective: float | None
    objective_tokens: int | None
    summary: dict[str, Any] | None
    num_retries: int
    created_at_ms: int
    started_at_ms: int | None
    finished_at_ms: int | None
    point: int | None = None
    replica: int | None = None
    parent_trial_id: str | None = None
    parent_checkpoint_id: str | None = None
    retry_of: str | None = None
    rungs: tuple[RungRecord, ...] = ()
    further_values: list[float | None] | None = None
    veto: str | None = None
    spec_version: int = 0


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A row of `runs`, with the experiment of its trial. `folder` is relative to the home."""

    id: str
    trial_id: str
    experiment_id: str
    trial_number: int
    number: int
    state: RunState
    cause: Cause | None
    reason: str
    since_ms: int
    epoch: int
    folder: str
    resumed_from_step: int | None
    stop_at_tokens: int | None
    progress: dict[str, Any] | None
    environment: dict[str, Any] | None
    created_at_ms: int
    started_at_ms: int | None
    finished_at_ms: int | None


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """A row of `checkpoints`. `folder` is relative to the home."""

    id: str
    trial_id: str
    run_id: str
    step: int
    tokens: int
    folder: str
    manifest_sha256: str
    state: str
    at_ms: int
    objective: float | None = None


@dataclass(frozen=True, kw_only=True)
class ForkRecord:
    """A row of `forks`, with the experiment that the trial is of."""

    experiment_id: str
    parent_experiment_id: str
    trial_id: str
    run_id: str
    checkpoint_id: str
    step: int
    changes: dict[str, Any]
    at_ms: int


@dataclass(frozen=True, kw_only=True)
class EventRecord:
    """A row of `events`; ids ascend in the order in which events became visible."""

    id: int
    at_ms: int
    kind: str
    experiment_id: str | None
    trial_id: str | None
    run_id: str | None
    data: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CommandRecord:
    """A row of `commands`."""

    id: int
    experiment_id: str
    kind: str
    payload: dict[str, Any]
    state: str
    reason: str
    created_at_ms: int
    applied_at_ms: int | None
    trial_id: str | None = None
    idempotency_key: str | None = None
    idempotency_fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrackingRecord:
    """A row of `tracking`."""

    trial_id: str
    mlflow_run_id: str | None
    positions: dict[str, Any]
    finished: bool
    updated_at_ms: int


@dataclass(frozen=True, kw_only=True)
class ServiceRecord:
    """A row of `services`."""

    name: str
    pid: int | None
    url: str | None
    state: str
    detail: dict[str, Any]
    heartbeat_ms: int
