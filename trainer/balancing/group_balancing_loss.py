"""The balancing loss between groups of experts.

Letters: T tokens, E experts, K experts per token, G groups.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.balancing.base import Balancer, demand
from trainer.balancing.load_balancing_loss import load_balancing_loss
from trainer.config.balancing import GroupBalancingLossConfig
from trainer.model.routing import LayerRouting


def group_balancing_loss(counts_E: Tensor, prob_sum_E: Tensor, *, num_groups: int, num_tokens: int) -> Tensor:
    """Returns sum_g f'_g * P'_g: 1 when the groups are evenly loaded, G when one has all; expert e is in e // (E/G).

    f'_g is the mean of E/(K T) n_e over the group's experts (no gradient), P'_g the sum of their mean probabilities:
    the Switch loss with groups in the place of experts.

    Source: Dai et al. 2024, arXiv:2401.06066, eq. 15-17.
    """
    counts_G = counts_E.unflatten(0, (num_groups, -1)).sum(dim=-1)
    prob_sum_G = prob_sum_E.unflatten(0, (num_groups, -1)).sum(dim=-1)
    return load_balancing_loss(counts_G, prob_sum_G, num_tokens=num_tokens)


class GroupBalancingLoss(Balancer):
    """Adds `coefficient` times the mean over layers of the loss, its shares those of the scope."""

    def __init__(self, config: GroupBalancingLossConfig) -> None:
        self.coefficient = config.coefficient
        self.num_groups = config.num_groups
        self.of_step = config.scope == "global_batch"

    @property
    def needs_step_demand(self) -> bool:
        return self.of_step

    def loss(self, routings: Sequence[LayerRouting], *, step_demand_LE: Tensor | None = None) -> Tensor | None:
        if not routings:
            return None
        demand_LE = step_demand_LE if self.of_step and step_demand_LE is not None else demand(routings)
        losses = [
            group_balancing_loss(
                demand_E, routing.prob_sum_E, num_groups=self.num_groups, num_tokens=routing.num_tokens
            )
            for routing, demand_E in zip(routings, demand_LE, strict=True)
        ]
        return self.coefficient * torch.stack(losses).mean()
