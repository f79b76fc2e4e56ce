"""What a spec can say of early stopping: where a trial is looked at, and what it has to show to go on."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.config.section import Section

Resource = Literal["tokens", "active_flops", "steps", "seconds"]
"""What rungs count: tokens trained on, FLOPs of what they activated, optimizer steps, or seconds of training."""


class NoScheduler(Section):
    """Every trial runs to the end."""

    kind: Literal["none"] = "none"


class RungsSection(Section):
    """A scheduler with rungs, the first at `min_tokens`, or at `min_resource` of what `resource` says."""

    resource: Resource = "tokens"
    """What rungs count. With `active_flops` or `steps` every trial has its rungs at tokens of its own, by its size and
    batch, so that trials of different cost are compared at equal cost. `seconds` are those measured while it trains:
    not reproducible."""
    min_tokens: int | None = Field(default=None, ge=1)
    """Short for `min_resource` of tokens."""
    min_resource: float | None = Field(default=None, gt=0, le=1e30)

    @property
    def first(self) -> float:
        """Where the first rung is, in units of `resource`; whole where it was given in tokens."""
        return self.min_tokens if self.min_resource is None else self.min_resource  # type: ignore[return-value]

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        _check_one_of(self.resource, ("min_tokens", self.min_tokens), ("min_resource", self.min_resource))
        return self


class HalvingSection(RungsSection):
    """Rungs at `reduction_factor^i` times the first, as far as they are below the trial's budget."""

    reduction_factor: int = Field(default=3, ge=2, le=16)
    mode: Literal["stop", "promote"] = "stop"
    """`stop`: a trial is decided on once, as it arrives. `promote`: it pauses at every rung, with a checkpoint, and
    goes on when it is among the best 1/reduction_factor of those that have arrived by then; a free place goes to the
    paused trial of the highest rung that is, else to a new trial."""


class IntervalSection(RungsSection):
    """Rungs at equal intervals from the first on, as far as they are below the trial's budget."""

    interval_tokens: int | None = Field(default=None, ge=1)
    """Short for `interval_resource` of tokens."""
    interval_resource: float | None = Field(default=None, gt=0, le=1e30)

    @property
    def interval(self) -> float:
        """From one rung to the next, in units of `resource`; whole where it was given in tokens."""
        return self.interval_tokens if self.interval_resource is None else self.interval_resource  # type: ignore[return-value]

    @model_validator(mode="after")
    def _one_interval(self) -> Self:
        _check_one_of(
            self.resource, ("interval_tokens", self.interval_tokens), ("interval_resource", self.interval_resource)
        )
        return self


class ASHAScheduler(HalvingSection):
    """Asynchronous successive halving: at each rung the best 1/reduction_factor go on.

    Source: Li et al. 2020, arXiv:1810.05934, algorithm 2, with `mode: promote`; the stopping variant decides on arrival
    and never resumes a stopped trial. In a synchronous experiment it is successive halving (algorithm 1) of each batch.
    """

    kind: Literal["asha"] = "asha"


class HyperbandScheduler(HalvingSection):
    """Several ASHA brackets side by side, in case early losses mislead: trials of bracket b are first judged at rung b.

    Trials take the brackets in turn, and are compared within their own.
    Source: Li et al. 2018, arXiv:1603.06560; asynchronous as in arXiv:1810.05934, section 3.2. In a synchronous
    experiment the brackets of each batch are halved when the batch has arrived.
    """

    kind: Literal["hyperband"] = "hyperband"
    num_brackets: int = Field(default=3, ge=2, le=10)


class MedianScheduler(IntervalSection):
    """A trial goes on where its best value so far is not worse than the median of what the others had there.

    Source: Golovin et al. 2017, "Google Vizier" (KDD), section 3.2.2, with the values at the rung in place of their
    running averages.
    """

    kind: Literal["median"] = "median"
    min_trials: int = Field(default=5, ge=1, le=10_000)
    """Nothing is stopped at a rung before so many other trials have arrived there."""


class PatienceScheduler(IntervalSection):
    """A trial goes on while it improves: it stops after `patience` rungs without a new best by more than `min_delta`.

    Other trials play no part.
    """

    kind: Literal["patience"] = "patience"
    patience: int = Field(default=3, ge=1, le=1000)
    min_delta: float = Field(default=0.0, ge=0)


class PBTScheduler(IntervalSection):
    """Population-based training: `num_trials` trials are the population, and its worst go on as changed copies of its
    best.

    At every rung the population waits, with checkpoints, until all that live have arrived. The worst `quantile` of them
    end there, pruned with the cause `pbt`, and for each a new trial begins with the checkpoint of one of the best
    `quantile` and with that one's values, changed: so a trial is one fixed configuration, and the lineage is recorded.
    Source: Jaderberg et al. 2017, arXiv:1711.09846, section 4.1.1 (truncation selection, perturb and resample).
    """

    kind: Literal["pbt"] = "pbt"
    quantile: float = Field(default=0.25, gt=0, le=0.5)
    """Share of the population that ends at a rung, rounded down, and share of it that is copied."""
    factors: Annotated[tuple[Annotated[float, Field(gt=0, le=100)], ...], Field(min_length=1, max_length=20)] = (
        0.8,
        1.2,
    )
    """A number is multiplied by one of these, and kept within its domain; a choice moves to a neighbour."""
    resample_probability: float = Field(default=0.25, ge=0, le=1)
    """How often a value is drawn from its domain anew instead."""
    explore: Annotated[tuple[str, ...], Field(max_length=200)] | None = None
    """Paths of the space that are changed; null: all that may change while a run goes on from a checkpoint. The others
    keep the value of the trial that is copied."""


SchedulerConfig = Annotated[
    NoScheduler | ASHAScheduler | HyperbandScheduler | MedianScheduler | PatienceScheduler | PBTScheduler,
    Field(discriminator="kind"),
]


def _check_one_of(resource: Resource, in_tokens: tuple[str, int | None], of_resource: tuple[str, float | None]) -> None:
    """Raises ValueError, naming the fields, unless one of them is given and fits `resource`."""
    (name, tokens), (other, amount) = in_tokens, of_resource
    if (tokens is None) == (amount is None):
        raise ValueError(f"{name}={tokens} and {other}={amount}: give one of them")
    if tokens is not None and resource != "tokens":
        raise ValueError(f"{name}={tokens} counts tokens, and resource is {resource!r}; give {other} in its place")
