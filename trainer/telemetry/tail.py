"""TailMeans: averages over the last steps of a run, for its summary."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LOSS_FRACTION = 0.05
ROUTER_FRACTION = 0.10
"""Share of the steps averaged over: a single step's loss and router metrics are noise."""

_ROUTER_METRICS = ("router/max_violation", "router/token_entropy", "router/load_entropy", "router/dead_fraction")


class RouterTail(NamedTuple):
    """Worst layers, each layer averaged over the last steps."""

    worst_max_violation: float
    worst_max_violation_layer: int
    min_token_entropy: float
    min_load_entropy: float
    max_dead_fraction: float


class TailMeans:
    """Adds up the loss over the last 5 % and the router metrics over the last 10 % of the steps, at least one each.

    Args:
        num_steps: of the whole run.
        layers: index in the whole model of each MoE layer.
    """

    def __init__(self, *, num_steps: int, layers: Sequence[int]) -> None:
        self._layers = tuple(layers)
        self._loss_after = num_steps - math.ceil(LOSS_FRACTION * num_steps)
        self._router_after = num_steps - math.ceil(ROUTER_FRACTION * num_steps)
        self._loss_sum, self._num_losses, self._num_router_steps = 0.0, 0, 0
        self._router_sums = {name: [0.0] * len(layers) for name in _ROUTER_METRICS}

    def add(self, step: int, *, loss: float, router: Mapping[str, NDArray[np.float64]]) -> None:
        """Take a step (1-based); `router` maps metric names to one value per layer."""
        if step > self._loss_after:
            self._loss_sum += loss
            self._num_losses += 1
        if step > self._router_after and self._layers:
            self._num_router_steps += 1
            for name, sums in self._router_sums.items():
                self._router_sums[name] = [
                    total + float(value) for total, value in zip(sums, router[name], strict=True)
                ]

    @property
    def loss(self) -> float | None:
        """Mean loss so far of the last steps; None before any."""
        return self._loss_sum / self._num_losses if self._num_losses else None

    @property
    def router(self) -> RouterTail | None:
        """Worst layers so far; None for a dense model or before any."""
        if not self._num_router_steps:
            return None
        means = {
            name: [total / self._num_router_steps for total in totals] for name, totals in self._router_sums.items()
        }
        violations = means["router/max_violation"]
        worst = max(range(len(violations)), key=violations.__getitem__)
        return RouterTail(
            worst_max_violation=violations[worst],
            worst_max_violation_layer=self._layers[worst],
            min_token_entropy=min(means["router/token_entropy"]),
            min_load_entropy=min(means["router/load_entropy"]),
            max_dead_fraction=max(means["router/dead_fraction"]),
        )

    def state(self) -> dict[str, Any]:
        """Return the sums as JSON values."""
        return {
            "loss_sum": self._loss_sum,
            "num_losses": self._num_losses,
            "num_router_steps": self._num_router_steps,
            "router_sums": self._router_sums,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` returned."""
        self._loss_sum = state["loss_sum"]
        self._num_losses = state["num_losses"]
        self._num_router_steps = state["num_router_steps"]
        self._router_sums = {name: list(sums) for name, sums in state["router_sums"].items()}
