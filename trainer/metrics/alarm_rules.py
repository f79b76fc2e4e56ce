"""Alarm rules with their numbers: what the rules of a config mean for its model.

A named rule becomes one or two rules about a metric whose thresholds follow from the numbers of experts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.config import TrainConfig
from trainer.config.alarms import (
    AlarmRule,
    CollapseRule,
    Comparison,
    DeadExpertsRule,
    DivergenceRule,
    EntropyFloorRule,
    MetricRule,
)
from trainer.config.model import MoEConfig
from trainer.metrics.catalog import ROUTER_SCALARS

Severity = Literal["warn", "stop"]

_BALANCED_MARGIN = 2.0
"""A busiest expert is watched where collapse is at least so many times the load of balance."""


@dataclass(frozen=True, kw_only=True)
class WatchedMetric:
    """One metric to be watched.

    Attributes:
        name: of the rule, for people: its kind, or the metric.
        severity: whether its alarm ends the run.
        metric: of the catalogue.
        comparison, threshold: the side of the threshold that is wrong; the threshold itself is.
        layers: of a router metric each layer on its own (`worst`), or one value over layers.
        for_steps: steps in a row that raise the alarm, and that clear it.
        rearm: the value on whose right side the alarm is cleared.
    """

    name: str
    severity: Severity
    metric: str
    comparison: Comparison
    threshold: float
    layers: Literal["worst", "mean", "min", "max"] = "worst"
    for_steps: int = 1
    rearm: float

    @property
    def has_layers(self) -> bool:
        """Whether there is one value per layer."""
        return self.metric in ROUTER_SCALARS


def watched_metrics(config: TrainConfig) -> tuple[WatchedMetric, ...]:
    """Return what the rules of `config` watch, stopping rules first; rules about the router say nothing if dense."""
    return (*_watched(config, config.stop_when, "stop"), *_watched(config, config.warn_when, "warn"))


def _watched(config: TrainConfig, rules: Sequence[AlarmRule], severity: Severity) -> list[WatchedMetric]:
    moe = config.model.moe
    return [
        WatchedMetric(
            name=rule.kind if rule.kind != "metric" else rule.metric,
            severity=severity,
            metric=numbers.metric,
            comparison=numbers.comparison,
            threshold=numbers.threshold,
            layers=numbers.layers,
            for_steps=numbers.for_steps,
            rearm=numbers.threshold if numbers.rearm is None else numbers.rearm,
        )
        for rule in rules
        for numbers in _numbers(rule, moe)
        if moe is not None or numbers.metric not in ROUTER_SCALARS
    ]


def _numbers(rule: AlarmRule, moe: MoEConfig | None) -> list[MetricRule]:
    """Return a rule as rules about metrics; none where the model has nothing to collapse."""
    if isinstance(rule, MetricRule):
        return [rule]
    if isinstance(rule, DivergenceRule):
        return [_rule("train/loss_rise", "at_least", rule.rise, rearm=rule.rise / 2, for_steps=rule.for_steps)]
    if moe is None:
        return []
    if isinstance(rule, DeadExpertsRule):
        # Above the fraction; the next number of experts is a whole one more.
        least = (math.floor(rule.max_fraction * moe.num_experts + 1e-9) + 1) / moe.num_experts
        return [_rule("router/persistent_dead_fraction", "at_least", least - 0.5 / moe.num_experts)]
    if isinstance(rule, EntropyFloorRule):
        if moe.router.kind in ("hash", "random"):
            return []
        floor = rule.fraction * math.log(moe.num_router_outputs)
        return [_rule("router/token_entropy", "at_most", floor, rearm=2 * floor, for_steps=rule.for_steps)]
    return _collapse(rule, moe)


def _collapse(rule: CollapseRule, moe: MoEConfig) -> list[MetricRule]:
    found = []
    busiest = rule.max_load_share / moe.top_k
    if busiest * moe.num_experts >= _BALANCED_MARGIN:
        found.append(_rule("router/max_load", "at_least", busiest, rearm=0.9 * busiest, for_steps=rule.for_steps))
    least = rule.effective_fraction * moe.num_experts
    if least > moe.top_k:
        found.append(_rule("router/effective_experts", "at_most", least, rearm=1.1 * least, for_steps=rule.for_steps))
    return found


def _rule(
    metric: str, comparison: Comparison, threshold: float, *, rearm: float | None = None, for_steps: int = 1
) -> MetricRule:
    return MetricRule(metric=metric, comparison=comparison, threshold=threshold, rearm=rearm, for_steps=for_steps)
