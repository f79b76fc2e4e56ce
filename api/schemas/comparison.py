"""The comparison of an experiment's trials."""

from typing import Literal

from api.schemas.wire import Answer, Scalar
from orchestrator.objective import FurtherObjective, Objective
from orchestrator.states import Cause, TrialState


class DomainScore(Answer):
    """Held-out bits per byte of one corpus, or of `all`."""

    domain: str
    initial: float | None
    """Before the first step."""
    final: float | None


class DomainInformation(Answer):
    """Mutual information of a held-out token's domain and its expert in bits, per MoE layer."""

    trained: list[float]
    untrained: list[float]
    """The same model at initialisation: the control."""
    shuffled: list[float]
    """Trained router, domain labels shuffled: the estimator's bias."""


class BaselineDifference(Answer):
    """A trial's objective minus that of a baseline."""

    baseline_trial_id: str
    baseline_label: str
    value: float
    within_noise: bool | None
    """Whether seeds alone can explain it; null if the noise between seeds is not known."""


class SeedNoise(Answer):
    """How much the objective varies between seeds alone."""

    standard_deviation: float
    """Pooled over the groups of completed trials that differ in their seed only."""
    num_groups: int
    num_trials: int


class ComparisonRow(Answer):
    """One trial in the comparison."""

    rank: int | None
    """1 is best; null for trials that did not complete. Baselines are ranked among the others."""
    trial_id: str
    number: int
    kind: Literal["search", "baseline", "added"]
    label: str | None
    state: TrialState
    cause: Cause | None
    reason: str
    params: dict[str, Scalar]
    objective: float | None
    objective_tokens: int | None
    difference_to_baseline: float | None
    """Objective minus that of the first baseline; null without both, and for that baseline."""
    differences: list[BaselineDifference]
    """To every completed baseline but itself."""
    violations: list[str]
    """The limits of the objective that the trial is beyond, with its figures; such trials rank behind the others."""
    further_values: list[float | None] | None
    """A value per further objective; null if there are none, or the trial did not complete."""
    veto: str | None
    """The limit with a veto that the trial is beyond: it has no rank."""
    on_front: bool | None
    """Of ranked trials with several objectives: whether it is on the Pareto front."""
    final_loss: float | None
    domains: list[DomainScore]
    total_parameters: int | None
    active_parameters: int | None
    flops_per_token: float | None
    training_flops: float | None
    """Spent until `objective_tokens`."""
    worst_max_violation: float | None
    worst_max_violation_layer: int | None
    min_token_entropy: float | None
    min_load_entropy: float | None
    max_dead_fraction: float | None
    num_spikes: int | None
    tokens_per_s: float | None
    training_duration_s: float | None
    domain_information: DomainInformation | None


class PairedDifference(Answer):
    """A point's objective minus that of a baseline, seed by seed, over the seeds that both completed."""

    baseline_point: int
    baseline_label: str
    num_pairs: int
    value: float
    """Mean of the differences."""
    low: float | None
    """95 % interval of the mean (Student's t); null of fewer than two pairs."""
    high: float | None
    within_noise: bool | None
    """Whether the interval has 0 in it: seeds alone can explain the difference. Null without an interval."""


class PointRow(Answer):
    """One configuration, tried with several seeds."""

    rank: int | None
    """1 is best, by the mean; null while a seed has not ended, and where none completed. Points some of whose seeds
    failed rank behind those with all of them."""
    point: int
    """0-based order, baselines first."""
    kind: Literal["search", "baseline", "added"]
    label: str | None
    params: dict[str, Scalar]
    trial_ids: list[str]
    """By seed."""
    num_completed: int
    num_failed: int
    num_open: int
    mean: float | None
    """Of the objective, over the completed trials."""
    standard_deviation: float | None
    low: float | None
    """95 % interval of the mean (Student's t); null of fewer than two."""
    high: float | None
    differences: list[PairedDifference]
    """To every baseline but itself that completed with one of its seeds."""
    violations: list[str]


class Comparison(Answer):
    """All trials side by side, best first."""

    experiment_id: str
    objective: Objective
    further_objectives: list[FurtherObjective]
    contract: str
    """What is held equal between the trials, in words."""
    baseline_trial_id: str | None
    domains: list[str]
    """`all` first."""
    noise: SeedNoise | None
    """Null if no two completed trials differ in their seed only."""
    rows: list[ComparisonRow]
    points: list[PointRow]
    """By configuration, where each was tried with several seeds (`replicas`), best first; else empty."""
    caveats: list[str]
    """What the comparison does not show."""
