"""The Switch load-balancing loss.

Letters: T tokens, E experts, K experts per token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.balancing.base import Balancer
from trainer.config.balancing import LoadBalancingLossConfig
from trainer.model.routing import LayerRouting


def load_balancing_loss(counts_E: Tensor, prob_sum_E: Tensor, *, num_tokens: int) -> Tensor:
    """Returns E * sum_e f_e * P_e: 1 at balance, E/K when all tokens choose the same K experts with certainty.

    f_e is expert e's share of the routed pairs (no gradient), P_e its mean probability. Values a little below 1 occur:
    the shares see the K best experts of a token, the probabilities all of them.

    Source: Fedus et al. 2021, arXiv:2101.03961, eq. 4-6. Ours counts all K choices, not only the first, and divides
    by all T*K of them, so that the shares sum to 1 and the value at balance does not depend on K.
    """
    share_E = counts_E.to(prob_sum_E.dtype) / counts_E.sum()
    return counts_E.shape[0] * torch.dot(share_E, prob_sum_E) / num_tokens


class LoadBalancingLoss(Balancer):
    """Adds `coefficient` times the mean over layers of the loss, of each micro-batch on its own rank.

    The shares are those of the micro-batch, so a larger `micro_batch_size` balances over more tokens, which leaves
    more room for specialisation (Qiu et al. 2025, arXiv:2501.11873).
    """

    def __init__(self, config: LoadBalancingLossConfig) -> None:
        self.coefficient = config.coefficient

    def loss(self, routings: Sequence[LayerRouting]) -> Tensor | None:
        losses = [
            load_balancing_loss(routing.counts_E, routing.prob_sum_E, num_tokens=routing.num_tokens)
            for routing in routings
        ]
        return self.coefficient * torch.stack(losses).mean() if losses else None
