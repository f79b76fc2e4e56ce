"""Trials and runs."""

from typing import Any, Literal

from pydantic import Field

from api.schemas.wire import Answer, EpochMs, Question, Scalar, shown_as
from orchestrator.states import Cause, ExperimentState, RunState, TrialState
from trainer.config.run import RunSummary


class Progress(Answer):
    """How far a run is, as it last reported."""

    step: int
    num_steps: int
    tokens: int
    budget_tokens: int
    loss: float | None
    """Training loss, nats/token."""
    tokens_per_s: float | None
    max_violation: float | None
    """router/max_violation of the worst layer; null for a dense model."""
    max_violation_layer: int | None
    token_entropy: float | None
    """router/token_entropy of the layer where it is smallest."""
    dead_fraction: float | None
    """router/dead_fraction of the worst layer."""
    bits_per_byte: float | None
    """Last held-out `all`."""
    num_spikes: int
    eta_s: float | None
    updated_at_ms: EpochMs


class RungRead(Answer):
    """What the scheduler decided on a trial at a rung."""

    rung: int
    tokens: int
    value: float | None
    """The objective; null if it was not finite."""
    decision: Literal["continue", "stop"] | None
    """Null while the trial waits there: for its batch, its point's other seeds, its population, or a promotion."""
    explanation: str | None
    at_ms: EpochMs


class TrialRead(Answer):
    """One row of an experiment's table of trials."""

    id: str
    experiment_id: str
    number: int
    """0-based order of proposal; baselines come first."""
    kind: Literal["search", "baseline", "added"]
    """`added`: by hand, a point or a failed trial tried again; no part of the search."""
    label: str | None
    """A baseline's name, or that of what was added."""
    retry_of: str | None
    """The failed trial that it tries again."""
    retried_by: str | None
    """The trial that tries this failed one again."""
    batch: int | None
    """Batch of a synchronous experiment."""
    point: int | None
    """Where points are tried with several seeds: which one, baselines first; else null."""
    replica: int | None
    """Which of its point's seeds it has, from 0."""
    parent_trial_id: str | None
    """The trial of this experiment that it goes on from (population-based training)."""
    state: TrialState
    cause: Cause | None
    reason: str
    since_ms: EpochMs
    params: dict[str, Scalar]
    """Parameter path -> proposed value."""
    objective: float | None
    """Of a completed trial; of a pruned one at its last rung."""
    objective_tokens: int | None
    further_values: list[float | None] | None
    """Of a completed trial: a value per further objective. Null if there are none."""
    veto: str | None
    """The limit with a veto that the trial is beyond, with its figure: it cannot win."""
    spec_version: int
    """Which version of the spec it was proposed under."""
    progress: Progress | None
    """Of its newest run."""
    summary: RunSummary | None
    rungs: list[RungRead]
    """Its arrivals at rungs, in ascending order."""
    num_runs: int
    num_retries: int
    created_at_ms: EpochMs
    started_at_ms: EpochMs | None
    finished_at_ms: EpochMs | None


class TrialPage(Answer):
    """A page of trials in order of their number."""

    items: list[TrialRead]
    next_cursor: str | None


class RunRead(Answer):
    """One execution of a trial."""

    id: str
    trial_id: str
    trial_number: int
    number: int
    """0-based order within the trial."""
    state: RunState
    cause: Cause | None
    reason: str
    since_ms: EpochMs
    resumed_from_step: int | None
    stop_at_tokens: int | None
    progress: Progress | None
    environment: dict[str, Any] | None
    """Versions, device, commit and data fingerprint of the run."""
    created_at_ms: EpochMs
    started_at_ms: EpochMs | None
    finished_at_ms: EpochMs | None


class RunList(Answer):
    """Runs of a trial, or of all trials of an experiment, in order of trial and run."""

    items: list[RunRead]


class TrialDetail(TrialRead):
    """A trial with its configuration and history."""

    config: dict[str, Any] | None = Field(json_schema_extra=shown_as("TrainConfig"))
    """The complete TrainConfig; null if the point is infeasible as a configuration."""
    config_fingerprint: str | None
    layer_kinds: list[Literal["dense", "moe"]]
    """The kind of each layer, first to last; empty without a configuration."""
    mlflow_run_url: str | None


class DiffRequest(Question):
    """Which trials to compare."""

    trials: list[str] = Field(min_length=1, max_length=100)


class Difference(Answer):
    """One configuration value that is not the same in all trials."""

    path: str
    """Dotted path into the TrainConfig; list entries by index."""
    values: list[Any]
    """One per trial, in the order asked for; null also where a trial has no such value."""
    present: list[bool]
    """Whether the trial has the value at all."""


class Diff(Answer):
    """Only the configuration values that differ."""

    trials: list[str]
    differences: list[Difference]
    num_equal: int
    """Configuration values that are the same everywhere."""


class CheckpointRead(Answer):
    """A checkpoint that is kept."""

    id: str
    trial_id: str
    run_id: str
    """The run that wrote it."""
    step: int
    tokens: int
    objective: float | None
    """At this step; null if the run was not evaluated there."""
    is_pinned: bool
    """A fork began from it: it is not deleted."""
    at_ms: EpochMs


class CheckpointList(Answer):
    """Checkpoints of a trial, fewest tokens first."""

    items: list[CheckpointRead]
    forkable: list[str]
    """Dotted paths of the trial's configuration whose values a fork may change."""


class ForkRequest(Question):
    """From which checkpoint to go on, and what differs."""

    step: int = Field(ge=0)
    """Of a checkpoint that is kept."""
    set: dict[str, Any] = Field(default_factory=dict, max_length=100)
    """Dotted path into the trial's configuration -> value, e.g. `optimizer.lr: 1e-4`."""
    name: str | None = Field(default=None, min_length=1, max_length=120, pattern=r"^[^\x00-\x1f]+$")
    """Of the new experiment; null derives one."""


class ForkRead(Answer):
    """An experiment that goes on from a checkpoint of another one's run."""

    experiment_id: str
    """The fork."""
    name: str
    """Of the fork."""
    state: ExperimentState
    """Of the fork."""
    parent_experiment_id: str
    parent_name: str
    trial_id: str
    """The trial it goes on from."""
    trial_number: int
    run_id: str
    """The run that wrote the checkpoint."""
    checkpoint_id: str
    step: int
    changes: dict[str, Any]
    """Dotted path -> value that differs from the trial's configuration."""
    at_ms: EpochMs


class ForkList(Answer):
    """Experiments forked from a trial, oldest first."""

    items: list[ForkRead]
