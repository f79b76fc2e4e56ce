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


EvaluationMetric = Literal["eval/bits_per_byte", "eval/loss"]
"""Held-out figures: measured again and again, so reduced to one value."""
FigureMetric = Literal[
    "router/max_violation",
    "router/token_entropy",
    "router/load_entropy",
    "router/dead_fraction",
    "final_loss",
    "num_spikes",
    "tokens_per_s",
    "training_duration_s",
    "flops_per_token",
    "active_parameters",
    "total_parameters",
]
"""One figure of a finished run. Of the router: the worst layer over the last 10 % of the steps, as the comparison shows
it."""
START = "start"
"""What `relative_to` calls the run's own evaluation before its first step."""
WORST = "worst"
"""What a constraint's `domain` calls the corpus that is furthest beyond the limit."""


class OutcomeConstraint(Section):
    """A limit on a figure of the finished run. The samplers are told by how much a trial is beyond it.

    A trial beyond it ranks behind all that keep to theirs; with `veto` it does not rank at all.
    """

    metric: FigureMetric | Literal["eval/bits_per_byte"]
    """`eval/bits_per_byte`: at the end of the run, of `domain`."""
    at_most: float | None = None
    at_least: float | None = None
    domain: str = "all"
    """Of `eval/bits_per_byte`: a corpus of the mixture, `all` for the mean, `worst` for the corpus furthest beyond the
    limit."""
    relative_to: Annotated[str, Field(min_length=1, max_length=80)] | None = None
    """Of `eval/bits_per_byte`: the limit is on how much it is above that of the baseline of this name, or above the
    run's own before its first step (`start`): how much capability was lost. While the baseline has no result, the limit
    says nothing."""
    veto: bool = False
    """A trial beyond the limit cannot win: it has no rank, is nobody's best, and is not on the Pareto front."""

    @model_validator(mode="after")
    def _one_limit(self) -> "OutcomeConstraint":
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError(
                f"at_most={self.at_most} and at_least={self.at_least}: give one of them; two limits are two constraints"
            )
        if self.metric != "eval/bits_per_byte" and (self.domain != "all" or self.relative_to is not None):
            given = f"domain={self.domain}" if self.domain != "all" else f"relative_to={self.relative_to}"
            raise ValueError(f"{given} goes with metric eval/bits_per_byte only, not with {self.metric}; leave it out")
        return self


class Objective(Section):
    """What the search optimises: an evaluation metric."""

    metric: EvaluationMetric = "eval/bits_per_byte"
    domain: str = "all"
    """A corpus of the mixture, or `all` for the mean over its corpora."""
    direction: Literal["minimize", "maximize"] = "minimize"
    value: Reduction = LastValue()
    """Which of a trial's evaluations count, at its end and at each rung."""
    constraints: Annotated[tuple[OutcomeConstraint, ...], Field(max_length=20)] = ()
    """Limits that the sampler is told of and the ranking heeds."""


class FurtherObjective(Section):
    """Another objective beside the first: the search looks for trials that are best in none at the cost of another.

    Early stopping, the checkpoints that are kept and the list of experiments go by the first objective alone.
    """

    metric: EvaluationMetric | FigureMetric
    domain: str = "all"
    """Of an evaluation metric: a corpus of the mixture, or `all` for the mean over its corpora."""
    direction: Literal["minimize", "maximize"]
    value: Reduction = LastValue()
    """Of an evaluation metric: which of a trial's evaluations count. The others have one figure per run."""

    @model_validator(mode="after")
    def _evaluated(self) -> "FurtherObjective":
        if not self.metric.startswith("eval/") and (self.domain != "all" or not isinstance(self.value, LastValue)):
            given = f"domain={self.domain}" if self.domain != "all" else f"value.kind={self.value.kind}"
            raise ValueError(f"{given} goes with an eval/ metric only, not with {self.metric}; leave it out")
        return self


def objective_name(objective: Objective | FurtherObjective) -> str:
    """An objective for people, e.g. `eval/loss (legal)`: its metric, and its corpus where it has one."""
    return f"{objective.metric} ({objective.domain})" if objective.metric.startswith("eval/") else objective.metric
