"""Functions of two parameters with known minima, for comparing samplers."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import optuna

COEFFICIENT, RATE = "model.moe.balancing.0.coefficient", "optimizer.lr"
SPACE: dict[str, Any] = {COEFFICIENT: {"float": [0.01, 1.0]}, RATE: {"float": [1e-4, 1e-2], "log": True}}

Function = Callable[[float, float], float]


def sphere(x: float, y: float) -> float:
    """A round bowl with its minimum of 0 at (0.3, 0.6)."""
    return (x - 0.3) ** 2 + (y - 0.6) ** 2


def branin(x: float, y: float) -> float:
    """Dixon and Szegoe 1978, scaled to the unit square: three equal minima of 0.3979."""
    a, b = 15 * x - 5, 15 * y
    bend = b - 5.1 / (4 * math.pi**2) * a**2 + 5 / math.pi * a - 6
    return bend**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(a) + 10


def valley(x: float, y: float) -> float:
    """Rosenbrock 1960, from -2 to 2: a bent valley, with its minimum of 0 at (0.75, 0.75)."""
    a, b = 4 * x - 2, 4 * y - 2
    return 100 * (b - a**2) ** 2 + (1 - a) ** 2


FUNCTIONS: dict[str, Function] = {"sphere": sphere, "branin": branin, "valley": valley}
_SMALLEST = 1e-12
"""Branin's minimum is known to so many digits only by its closed form 5 / (4 pi), and log10 of 0 is none."""


def value_of(function: Function, params: Mapping[str, Any]) -> float:
    """The function with both parameters scaled to [0, 1], as the samplers see them."""
    return function((params[COEFFICIENT] - 0.01) / 0.99, math.log10(params[RATE] / 1e-4) / 2)


def excess(function: Function, value: float) -> float:
    """How much a value is above the function's minimum; at least 1e-12."""
    return max(_SMALLEST, value - (5 / (4 * math.pi) if function is branin else 0.0))


def suggest(trial: optuna.Trial) -> dict[str, float]:
    """The parameters as Optuna's users ask for them."""
    return {
        COEFFICIENT: trial.suggest_float(COEFFICIENT, *SPACE[COEFFICIENT]["float"]),
        RATE: trial.suggest_float(RATE, *SPACE[RATE]["float"], log=True),
    }
