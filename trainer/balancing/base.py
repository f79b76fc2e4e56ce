"""What a balancing method has to be.

Letters: L mixture-of-experts layers, E experts.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from trainer.config.balancing import BalancerConfig
from trainer.model.routing import LayerRouting
from trainer.model.transformer import Transformer


class Balancer(ABC):
    """A method acts through a loss, or on the model after a step, or both. It holds no state of its own: what it
    learns lives in the model's buffers and is checkpointed with them."""

    needs_selection_bias: ClassVar[bool] = False
    """Whether the mixture-of-experts layers must have the buffer `selection_bias_E`."""

    @abstractmethod
    def __init__(self, config: BalancerConfig) -> None:
        """Takes the method's own config."""

    @property
    def needs_step_demand(self) -> bool:
        """Whether `loss` must be told the demand of the whole step."""
        return False

    def loss(self, routings: Sequence[LayerRouting], *, step_demand_LE: Tensor | None = None) -> Tensor | None:
        """Returns a float32 scalar to add to the loss of a micro-batch, coefficient included; None without a loss.

        Computed per layer, then averaged over the layers, so that it neither grows with depth nor lets one layer's
        surplus cancel another's.

        Args:
            routings: of the micro-batch, one per layer.
            step_demand_LE: int64, the demand of the whole step (see `demand`), for a method that needs it; None says
                that these routings are all there is.
        """
        del routings, step_demand_LE
        return None

    def observe(self, model: Transformer, routings: Sequence[LayerRouting]) -> Tensor | None:
        """Returns what of a micro-batch's routing `after_step` wants to know besides the counts; None for nothing.

        A tensor of the same shape each time, without gradient, that adds up: `after_step` is given its sum over the
        micro-batches and workers of the step.
        """
        del model, routings
        return None

    def after_step(self, model: Transformer, counts_LE: Tensor, *, observed: Tensor | None = None) -> None:
        """Acts on the model once per optimizer step.

        Args:
            model: the bare model, not wrapped in DistributedDataParallel.
            counts_LE: float32 routed pairs per layer and expert of the whole step, summed over micro-batches and ranks.
            observed: the sum of what `observe` returned in this step.
        """
        del model, counts_LE, observed


def demand(routings: Sequence[LayerRouting]) -> Tensor:
    """Returns demand_LE: the pairs the routers asked for, per layer and expert, before any is dropped.

    int64. A router with null experts has them as columns after the others, in float64: null experts are all alike, so
    each counts as their mean and no loss evens the load among them (Zeng et al. 2024, AdaMoE, arXiv:2406.13233).
    """
    return torch.stack([_demand(routing) for routing in routings])


def _demand(routing: LayerRouting) -> Tensor:
    counts_E = routing.stats.counts_E
    num_null_experts = routing.logits_TE.shape[1] - counts_E.shape[0]
    if not num_null_experts:
        return counts_E
    assert routing.stats.coverage_4 is not None, "a router with null experts counts what they are sent"
    null_count = routing.stats.coverage_4[1].double() / num_null_experts
    return torch.cat((counts_E.double(), null_count.expand(num_null_experts)))
