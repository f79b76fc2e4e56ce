"""Alarms: rules about the metrics of a run, as data. What is warned of is told; what is stopped at ends the run.

A rule holds for a step when the value is on the wrong side of its threshold. It raises its alarm once it has held for
`for_steps` steps in a row, and clears it once the value has been on the right side of `rearm` for as many; in between
nothing is said again. Values of several layers: with `layers: worst` each layer is watched on its own, and its alarm
names it.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.section import Section
from trainer.metrics.catalog import ROUTER_SCALARS, WATCHED_SCALARS

Comparison = Literal["at_least", "at_most"]
ForSteps = Annotated[int, Field(ge=1, le=1_000_000)]


class MetricRule(Section):
    """A metric of the catalogue on the wrong side of a threshold."""

    kind: Literal["metric"] = "metric"
    metric: str
    """Recorded at every step: a `train/`, `optimizer/` or `router/` metric."""
    comparison: Comparison
    """The side that is wrong."""
    threshold: float
    layers: Literal["worst", "mean", "min", "max"] = "worst"
    """Of a router metric: each layer on its own, or one value over layers."""
    for_steps: ForSteps = 1
    """Steps in a row that raise the alarm, and that clear it."""
    rearm: float | None = None
    """The value has to come back beyond it to clear the alarm; null takes the threshold."""

    @model_validator(mode="after")
    def _is_watched(self) -> "MetricRule":
        if self.metric not in WATCHED_SCALARS:
            raise ValueError(
                f"metric={self.metric!r} is not recorded at every step; choose one of {', '.join(WATCHED_SCALARS)}"
            )
        if self.layers != "worst" and self.metric not in ROUTER_SCALARS:
            raise ValueError(f"layers={self.layers!r} asks for layers, which {self.metric!r} does not have; leave it")
        if self.rearm is not None:
            is_beyond = self.rearm > self.threshold if self.comparison == "at_least" else self.rearm < self.threshold
            if is_beyond:
                raise ValueError(
                    f"rearm={self.rearm} is on the wrong side of threshold={self.threshold} itself; the alarm would "
                    "clear while its condition holds"
                )
        return self


class CollapseRule(Section):
    """Routing that has collapsed onto few experts, in any layer.

    Either the busiest expert gets nearly all it can (1 / top_k), or the loads amount to few experts. A first layer
    whose busiest expert is at 1 / top_k has been seen in healthy runs, so the default only warns.

    Source: the series of nmoe (Noumena 2026, pages 0000 and 0002): in a collapsed run max_load stays at 1 / top_k in
    many layers while the mean entropy over layers looks healthy; the fractions and the 100 steps are ours.
    """

    kind: Literal["collapse"] = "collapse"
    max_load_share: float = Field(default=0.9, gt=0, le=1)
    """Of 1 / top_k, for the busiest expert's load fraction. Not watched where balanced loads come within a factor of
    two of it."""
    effective_fraction: float = Field(default=0.25, gt=0, lt=1)
    """Least exp(load entropy) over the number of experts. Not watched where top_k experts are more than that."""
    for_steps: ForSteps = 100


class DeadExpertsRule(Section):
    """Experts that no token has chosen in the last 100 steps, in any layer.

    Source: as for `collapse`; that it takes a window, since small batches leave experts out by chance, is also in
    NeMo Automodel's load metrics.
    """

    kind: Literal["dead_experts"] = "dead_experts"
    max_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Fraction of a layer's experts up to which nothing is said."""


class DivergenceRule(Section):
    """A loss that has climbed from where it was and stays there: what a spike detector, whose baseline follows, misses.

    The running mean of the loss (`train/loss_rise` says how it is taken) is compared with the least it ever was.
    """

    kind: Literal["divergence"] = "divergence"
    rise: float = Field(default=0.5, gt=0, le=1000)
    """Nats per token above the least running mean so far."""
    for_steps: ForSteps = 50


class EntropyFloorRule(Section):
    """A router so decided, in any layer, that nothing but noise could change its mind: softmax passes no gradient on.

    Not watched where the router has no distribution of its own (`hash`, `random`).
    """

    kind: Literal["entropy_floor"] = "entropy_floor"
    fraction: float = Field(default=0.01, gt=0, lt=1)
    """Least token entropy, as a fraction of the logarithm of the router's number of outputs."""
    for_steps: ForSteps = 100


AlarmRule = Annotated[
    MetricRule | CollapseRule | DeadExpertsRule | DivergenceRule | EntropyFloorRule, Field(discriminator="kind")
]

DEFAULT_WARNINGS: tuple[AlarmRule, ...] = (CollapseRule(), DeadExpertsRule(), DivergenceRule(), EntropyFloorRule())
