"""The router z-loss."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.balancing.base import Balancer
from trainer.config.balancing import RouterZLossConfig
from trainer.model.routing import LayerRouting


class RouterZLoss(Balancer):
    """Adds `coefficient` times the mean squared logsumexp of the router logits: keeps them small, not even.

    Source: Zoph et al. 2022 (ST-MoE), arXiv:2202.08906, eq. 5; averaged over layers.
    """

    def __init__(self, config: RouterZLossConfig) -> None:
        self.coefficient = config.coefficient

    def loss(self, routings: Sequence[LayerRouting], *, step_demand_LE: Tensor | None = None) -> Tensor | None:
        del step_demand_LE
        losses = [routing.z_sum / routing.num_tokens for routing in routings]
        return self.coefficient * torch.stack(losses).mean() if losses else None
