"""Learning curves with a known truth, for benchmarks of a search with early stopping.

A point is a learning rate and two other values, all scaled to [0, 1]. What it comes to at the end is known without
noise, so that the regret of a choice is exact.
"""

import math
import random
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

BUDGET_STEPS = 27
"""Steps of a whole training; rungs are at 1, 3 and 9."""
NOISE = 0.01
"""Standard deviation of an evaluation."""
FLOOR = 2.0
_DROP = 2.5
"""How much a run can learn."""
_GOOD_RATE = 0.3


class LandscapePoint(NamedTuple):
    """A configuration: how fast it learns, and two values that only say how far it gets."""

    rate: float
    width: float
    weight: float


Curve = Callable[[LandscapePoint, float], float]
"""(point, step) -> loss without noise."""


def steady(point: LandscapePoint, step: float) -> float:
    """All learn at the same pace: who is ahead early stays ahead."""
    return FLOOR + 4 * (point.rate - _GOOD_RATE) ** 2 + _others(point) + _DROP * math.exp(-step / 8)


def crossing(point: LandscapePoint, step: float) -> float:
    """A high rate learns fast and ends at a higher loss: curves cross between the second rung and the end."""
    excess = max(0.0, point.rate - _GOOD_RATE)
    return FLOOR + 1.5 * excess**2 + _others(point) + _slow(point, step)


def rising(point: LandscapePoint, step: float) -> float:
    """A high rate learns fast and then loses what it has learned, so its early losses are lower than its last."""
    excess, unstable = max(0.0, point.rate - _GOOD_RATE), max(0.0, point.rate - 0.5)
    lost = (1.5 * excess**2 + 1.6 * unstable) * step / BUDGET_STEPS
    return FLOOR + lost + _others(point) + _slow(point, step)


def overfitting(point: LandscapePoint, step: float) -> float:
    """All overfit alike, so that every early loss is lower than any last one; who is ahead early stays ahead."""
    learning = _DROP * math.exp(-step / 0.8) + step / BUDGET_STEPS
    return FLOOR + 4 * (point.rate - _GOOD_RATE) ** 2 + _others(point) + learning


CURVES: dict[str, Curve] = {"steady": steady, "crossing": crossing, "rising": rising, "overfitting": overfitting}


def measured(curve: Curve, point: LandscapePoint, step: int, *, seed: int) -> float:
    """An evaluation with its noise, the same whenever it is taken."""
    return curve(point, step) + random.Random(f"{seed} {point} {step}").gauss(0.0, NOISE)


def step_duration_s(point: LandscapePoint, *, seed: int) -> float:
    """What a step of this point takes: between 1 and 2 s, so that parallel trials arrive in an order of their own."""
    return 1.0 + random.Random(f"{seed} {point}").random()


@cache
def optimum(curve: Curve) -> float:
    """The lowest loss that any point ends at, over a fine grid of rates; the other values are known."""
    return min(curve(LandscapePoint(index / 20_000, 0.6, 0.4), BUDGET_STEPS) for index in range(20_001))


def regret(curve: Curve, point: LandscapePoint) -> float:
    """How much worse than the best of all points this one ends, trained wholly and without noise."""
    return curve(point, BUDGET_STEPS) - optimum(curve)


def _others(point: LandscapePoint) -> float:
    return (point.width - 0.6) ** 2 + (point.weight - 0.4) ** 2


def _slow(point: LandscapePoint, step: float) -> float:
    """What is still to be learned: a high rate learns it sooner."""
    return _DROP * math.exp(-step / (1 + 10 * (1 - point.rate) ** 2))
