"""The balancing loss of each sequence on its own.

Letters: B sequences, L positions, T tokens (B*L), E experts, K experts per token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import distribution
from trainer.balancing.base import Balancer
from trainer.config.balancing import SequenceBalancingLossConfig
from trainer.model.routing import LayerRouting


def sequence_balancing_loss(routing: LayerRouting) -> Tensor:
    """Returns the mean over sequences of sum_e f_e * P_e: 1 at balance, E/K at collapse.

    f_e is E/(K L) times the tokens of the sequence sent to expert e (no gradient), P_e the sequence's mean of the
    scores after each token's were divided by their sum. All sequences are equally long, so the mean over the
    micro-batches and ranks of a step is that over all its sequences. Null experts count as experts, each as their mean.

    Source: DeepSeek-AI 2024, arXiv:2412.19437, eq. 17-20. Counted are the choices the model made, a selection bias
    included; eq. 18 has those of the scores alone.
    """
    probs_BLE = distribution(routing.logits_TE, routing.score).unflatten(0, (routing.num_sequences, -1))
    num_experts = probs_BLE.shape[-1]
    counts_BE = routing.assignments_TE().unflatten(0, (routing.num_sequences, -1)).sum(dim=1)
    share_BE = counts_BE.to(probs_BLE.dtype) / counts_BE.sum(dim=1, keepdim=True).clamp(min=1)
    num_real_experts = routing.stats.counts_E.shape[0]
    if num_real_experts < num_experts:
        null_B1 = share_BE[:, num_real_experts:].mean(dim=1, keepdim=True)
        share_BE = torch.cat(
            (share_BE[:, :num_real_experts], null_B1.expand(-1, num_experts - num_real_experts)), dim=1
        )
    return num_experts * (share_BE * probs_BLE.mean(dim=1)).sum(dim=-1).mean()


class SequenceBalancingLoss(Balancer):
    """Adds `coefficient` times the mean over layers of the loss."""

    def __init__(self, config: SequenceBalancingLossConfig) -> None:
        self.coefficient = config.coefficient

    def loss(self, routings: Sequence[LayerRouting], *, step_demand_LE: Tensor | None = None) -> Tensor | None:
        del step_demand_LE
        losses = [sequence_balancing_loss(routing) for routing in routings]
        return self.coefficient * torch.stack(losses).mean() if losses else None
