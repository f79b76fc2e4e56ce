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
    """The completed trial of the search with the best objective so far."""

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
    """Trials of the search plus baselines, as planned."""
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
    rung_tokens: list[int]
    warnings: list[str]
