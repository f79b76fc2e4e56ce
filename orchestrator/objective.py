"""What a spec can say of its objective: which metric, how a trial's evaluations become one value, and what it has to
keep to."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.section import Section


class LastValue(Section):
    """The newest evaluation."""

    kind: Literal["last"] = "last"


class BestValue(Section):
    """The best evaluation so far. It favours trials that are evaluated often and noisily: best of many is no mean."""

    kind: Literal["best"] = "best"


class MeanValue(Section):
    """The mean of the newest evaluations: less noise than the last alone."""

    kind: Literal["mean"] = "mean"
    num_evaluations: int = Field(default=3, ge=1, le=10_000)
    """How many of them; of fewer, all."""


class ValueAt(Section):
    """The first evaluation at or after so many training tokens; until then, and where there is none, the newest."""

    kind: Literal["at"] = "at"
    tokens: int = Field(ge=1)


Reduction = Annotated[LastValue | BestValue | MeanValue | ValueAt, Field(discriminator="kind")]


class OutcomeConstraint(Section):
    """A limit on a figure of the finished run. A trial beyond it ranks behind all that keep to theirs."""

    metric: Literal[
        "router/max_violation",
        "router/token_entropy",
        "router/load_entropy",
        "router/dead_fraction",
        "final_loss",
        "num_spikes",
        "tokens_per_s",
        "training_duration_s",
    ]
    """Of the router: the worst layer over the last 10 % of the steps, as the comparison shows it."""
    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> "OutcomeConstraint":
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError(
                f"at_most={self.at_most} and at_least={self.at_least}: give one of them; two limits are two constraints"
            )
        return self


class Objective(Section):
    """What the search optimises: an evaluation metric."""

    metric: Literal["eval/bits_per_byte", "eval/loss"] = "eval/bits_per_byte"
    domain: str = "all"
    """A corpus of the mixture, or `all` for the mean over its corpora."""
    direction: Literal["minimize", "maximize"] = "minimize"
    value: Reduction = LastValue()
    """Which of a trial's evaluations count, at its end and at each rung."""
    constraints: Annotated[tuple[OutcomeConstraint, ...], Field(max_length=20)] = ()
    """Limits that the sampler is told of and the ranking heeds."""
