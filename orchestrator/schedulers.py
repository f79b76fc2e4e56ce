"""What a spec can say of early stopping: at which tokens a trial is looked at, and what it has to show to go on."""

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.section import Section


class NoScheduler(Section):
    """Every trial runs to the end."""

    kind: Literal["none"] = "none"


class ASHAScheduler(Section):
    """Asynchronous successive halving, stopping variant: at each rung the best 1/reduction_factor go on.

    Rungs are at `min_tokens * reduction_factor^i` training tokens, below the trial's budget.
    Source: Li et al. 2020, arXiv:1810.05934, algorithm 2; the stopping variant decides on arrival and never resumes a
    stopped trial. In a synchronous experiment it is successive halving (algorithm 1) of each batch.
    """

    kind: Literal["asha"] = "asha"
    min_tokens: int = Field(ge=1)
    reduction_factor: int = Field(default=3, ge=2, le=16)


class HyperbandScheduler(Section):
    """Several ASHA brackets side by side, in case early losses mislead: trials of bracket b are first judged at rung b.

    Trials take the brackets in turn, and are compared within their own.
    Source: Li et al. 2018, arXiv:1603.06560; asynchronous as in arXiv:1810.05934, section 3.2.
    """

    kind: Literal["hyperband"] = "hyperband"
    min_tokens: int = Field(ge=1)
    reduction_factor: int = Field(default=3, ge=2, le=16)
    num_brackets: int = Field(default=3, ge=2, le=10)


class MedianScheduler(Section):
    """A trial goes on where its best value so far is not worse than the median of what the others had there.

    Rungs are every `interval_tokens` training tokens from `min_tokens` on.
    Source: Golovin et al. 2017, "Google Vizier" (KDD), section 3.2.2, with the values at the rung in place of their
    running averages.
    """

    kind: Literal["median"] = "median"
    min_tokens: int = Field(ge=1)
    interval_tokens: int = Field(ge=1)
    min_trials: int = Field(default=5, ge=1, le=10_000)
    """Nothing is stopped at a rung before so many other trials have arrived there."""


class PatienceScheduler(Section):
    """A trial goes on while it improves: it stops after `patience` rungs without a new best by more than `min_delta`.

    Rungs are every `interval_tokens` training tokens from `min_tokens` on. Other trials play no part.
    """

    kind: Literal["patience"] = "patience"
    min_tokens: int = Field(ge=1)
    interval_tokens: int = Field(ge=1)
    patience: int = Field(default=3, ge=1, le=1000)
    min_delta: float = Field(default=0.0, ge=0)


SchedulerConfig = Annotated[
    NoScheduler | ASHAScheduler | HyperbandScheduler | MedianScheduler | PatienceScheduler, Field(discriminator="kind")
]
