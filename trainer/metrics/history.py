"""Metrics of a step that need the steps before it: dead experts over a window, tokens seen, how far the loss has risen.

Letters: `S` consecutive steps, `L` MoE layers, `E` experts.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERSISTENT_STEPS = 100
"""Steps without a token after which an expert counts as dead for good; small batches leave experts out by chance."""

LOSS_DECAY = 0.98
"""Share of the old running mean of the loss in the new one: a window of about 50 steps."""


class RunHistory:
    """What has to be remembered of the steps so far, taken in in blocks of any size; the size changes nothing.

    Args:
        num_layers, num_experts: of the MoE layers; 0 for a dense model.
    """

    def __init__(self, *, num_layers: int, num_experts: int) -> None:
        self._idle_LE = np.zeros((num_layers, num_experts), dtype=np.int64)
        self._seen_LE = np.zeros((num_layers, num_experts), dtype=np.int64)
        self._mean_loss: float | None = None
        self._least_loss: float | None = None

    def rises(self, loss_S: NDArray[np.float64]) -> NDArray[np.float64]:
        """Take the losses of the next steps; return `train/loss_rise` of each, shape [S].

        The running mean starts as the first loss. After a loss that is not finite all further ones are NaN.
        """
        rises = []
        for loss in loss_S.tolist():
            mean = loss if self._mean_loss is None else LOSS_DECAY * self._mean_loss + (1.0 - LOSS_DECAY) * loss
            least = mean if self._least_loss is None else min(self._least_loss, mean)
            rises.append(mean - least)
            self._mean_loss, self._least_loss = mean, least
        return np.array(rises, dtype=np.float64)

    def loads(self, counts_SLE: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Take the loads of the next steps; return the `router/` metrics that sum them up, name -> float64 [S, L]."""
        dead, seen, least = (np.zeros(counts_SLE.shape[:2]) for _ in range(3))
        for step, counts_LE in enumerate(counts_SLE):
            self._idle_LE = np.where(counts_LE > 0, 0, self._idle_LE + 1)
            self._seen_LE = self._seen_LE + counts_LE
            dead[step] = (self._idle_LE >= PERSISTENT_STEPS).mean(axis=-1)
            seen[step] = self._seen_LE.mean(axis=-1)
            least[step] = self._seen_LE.min(axis=-1)
        return {
            "router/persistent_dead_fraction": dead,
            "router/tokens_seen": seen,
            "router/least_tokens_seen": least,
        }

    @property
    def tokens_seen_LE(self) -> NDArray[np.int64]:
        """Tokens sent to each expert so far."""
        return self._seen_LE

    def state(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "idle_steps": self._idle_LE.tolist(),
            "tokens_seen": self._seen_LE.tolist(),
            "mean_loss": self._mean_loss,
            "least_loss": self._least_loss,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` returned."""
        shape = self._idle_LE.shape
        self._idle_LE = np.array(state["idle_steps"], dtype=np.int64).reshape(shape)
        self._seen_LE = np.array(state["tokens_seen"], dtype=np.int64).reshape(shape)
        self._mean_loss, self._least_loss = state["mean_loss"], state["least_loss"]
