"""Experiments: submitting, estimating, listing, following."""

from typing import Any, Literal

from pydantic import Field

from api.schemas.search import WarmStartRead
from api.schemas.trials import ForkRead
from api.schemas.wire import Answer, EpochMs, Scalar, shown_as
from orchestrator.objective import FurtherObjective, Objective
from orchestrator.states import ExperimentState


class TrialCounts(Answer):
    """How many trials are in each state."""

    queued: int
    running: int
    retrying: int
    completed: int
    pruned: int
    failed: int
    infeasible: int
    cancelled: int


class BestTrial(Answer):
    """The completed trial of the search with the best objective so far.

    Where points have several seeds: the point with the best mean, of those that completed with all, as its first trial.
    """

    trial_id: str
    number: int
    objective: float
    objective_tokens: int | None
    params: dict[str, Scalar]


class BaselineBest(Answer):
    """What the trials are compared with: the first baseline that completed."""

    trial_id: str
    label: str | None
    objective: float


class ExperimentSummary(Answer):
    """One row of the list of experiments."""

    id: str
    name: str
    state: ExperimentState
    reason: str
    """Why it is in `state`; of one that waits for places, what it needs and who is ahead."""
    since_ms: EpochMs
    """When it entered `state`."""
    owner: str
    """Whose token submitted it; `local` for the installation's own."""
    priority: int
    """Free places go to the highest first."""
    stop_within_s: float | None
    """While it is being paused or cancelled: how long its runs may take to write a checkpoint."""
    created_at_ms: EpochMs
    finished_at_ms: EpochMs | None
    objective: Objective
    further_objectives: list[FurtherObjective]
    """What else is optimised; `best` goes by `objective` alone."""
    num_trials: int
    """Trials of the search plus baselines, as planned, or as many as there are: copies within a population and trials
    that were added by hand come on top."""
    trial_counts: TrialCounts
    best: BestTrial | None
    baseline: BaselineBest | None
    """Null while no baseline has completed."""
    max_dead_fraction: float | None
    """Largest router/dead_fraction of any layer of any trial that has ended; null without such figures."""
    num_spikes: int
    """Loss and gradient spikes over all its trials."""
    eta_s: float | None
    """Seconds until the planned trials are done, from the pace so far; null if it is not known yet, or at the end."""


class ExperimentDetail(ExperimentSummary):
    """An experiment with its documents."""

    description: str
    document: dict[str, Any]
    """What the user sent."""
    spec: dict[str, Any] = Field(json_schema_extra=shown_as("ExperimentSpec"))
    """The normalised spec with all defaults."""
    spec_version: int
    """How often the experiment was extended."""
    warm_start: WarmStartRead | None
    """What the search learned from other experiments; null if it was given nothing."""
    warnings: list[str]
    rung_tokens: list[int]
    """Training tokens at which the scheduler decides; empty without one."""
    mlflow_url: str | None
    """The experiment's page in the MLflow UI."""
    fork: ForkRead | None
    """Where it goes on from; null if it is no fork."""


class ExperimentPage(Answer):
    """A page of experiments, newest first."""

    items: list[ExperimentSummary]
    next_cursor: str | None
    """Pass it as `cursor` to get the next page; null on the last."""


class Estimated(Answer):
    """A number with what it rests on."""

    value: float | None
    """Null if there is no basis to estimate it from."""
    low: float | None
    high: float | None
    unit: str
    basis: str


class ParameterCounts(Answer):
    """Parameters of one model in closed form."""

    total: int
    active: int
    """Used by one token."""
    active_minus_input_embedding: int
    non_embedding_total: int
    non_embedding_active: int


class MemoryNeeded(Answer):
    """Memory of one worker in GiB."""

    weights_gib: float
    gradients_gib: float
    optimizer_gib: float
    activations_gib: float
    logits_gib: float
    total_gib: float


class SearchedParameter(Answer):
    """One dimension of the search space."""

    path: str
    kind: Literal["int", "float", "choice", "options"]
    domain: str
    """The domain in words."""


class BaselineMatch(Answer):
    """A baseline that `match` derived, beside the base."""

    baseline: str
    match: Literal["active_params", "total_params", "flops"]
    hidden_dim: int
    """The width that was derived, of the dense MLPs or of one expert."""
    base_value: float
    """What the base has of the matched quantity."""
    value: float
    """What the baseline has."""
    residual: float
    """How much more the baseline has, as a share of what the base has; negative if it has less."""


class SearchPhase(Answer):
    """A part of the search, in words, and how many points it makes."""

    what: str
    num_points: int


class RungPreview(Answer):
    """What a rung is expected to let through, of trials that arrive in an order that says nothing about them."""

    rung: int
    tokens: int
    """Of the base configuration."""
    arriving: float | None
    """Points; null where the rule depends on the values."""
    passing: float | None


class SampledPoint(Answer):
    """A point of the space with its complete configuration and what that takes."""

    params: dict[str, Scalar]
    config: dict[str, Any] | None = Field(json_schema_extra=shown_as("TrainConfig"))
    problem: str | None
    """Why it cannot run; null if it can."""
    total_parameters: int | None
    active_parameters: int | None
    flops_per_token: float | None
    memory_gib: float | None
    """Of one worker."""


class DeviceFit(Answer):
    """How many of the points that were tried fit on the nodes of one kind: by the memory of the node, or of its GPUs if
    a trial takes some."""

    num_nodes: int
    cpus: float
    gpus: float
    memory_gib: float
    gpu_memory_gib: float | None
    """Of one GPU; null where it is not known, and points are taken to fit."""
    num_fitting: int
    num_tried: int


class Validation(Answer):
    """What would happen if the spec were submitted. Nothing is stored."""

    spec: dict[str, Any] = Field(json_schema_extra=shown_as("ExperimentSpec"))
    """The normalised spec with all defaults."""
    num_trials: int
    """Trials of the search, without baselines."""
    num_baselines: int
    baseline_matches: list[BaselineMatch]
    """One per baseline with `match`."""
    space: list[SearchedParameter]
    parameters: ParameterCounts
    """Of the base configuration."""
    total_parameters: Estimated
    """Over the search space."""
    flops_per_token: float
    """Training FLOPs per token of the base configuration, forward and backward."""
    tokens: Estimated
    """Over all trials: `value` and `high` as if none were pruned, `low` as if every rung pruned all it may."""
    training_flops: Estimated
    """Likewise."""
    memory: MemoryNeeded
    """Of one worker of the base configuration."""
    peak_memory: Estimated
    """Of one worker, over the search space."""
    duration: Estimated
    disk: Estimated
    max_parallel_trials: Estimated
    """How many trials this installation runs at a time."""
    trial_range: Estimated
    """All trials, baselines and seeds included."""
    device_hours: Estimated
    """Of all devices together: GPU h, or CPU h."""
    devices: list[DeviceFit]
    """The nodes by kind, largest memory first; empty while the cluster is not known."""
    sample: list[SampledPoint]
    """Up to 5 points: what is enqueued, then the first of a grid, else draws from the space."""
    phases: list[SearchPhase]
    """How the search would unfold."""
    rungs: list[RungPreview]
    warm_start: WarmStartRead | None
    """What the search would learn from other experiments now; null if it names none."""
    rung_tokens: list[int]
    warnings: list[str]
