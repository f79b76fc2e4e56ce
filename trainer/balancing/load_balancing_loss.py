"""The Switch load-balancing loss.

Letters: T tokens, E experts, K experts per token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.balancing.base import Balancer, demand
from trainer.config.balancing import LoadBalancingLossConfig
from trainer.model.routing import LayerRouting


def load_balancing_loss(counts_E: Tensor, prob_sum_E: Tensor, *, num_tokens: int) -> Tensor:
    """Returns E * sum_e f_e * P_e: 1 at balance, E/K when all tokens choose the same K experts with certainty.

    f_e is expert e's share of the routed pairs (no gradient), P_e its mean probability over `num_tokens` tokens; the
    pairs may be those of more tokens. Values a little below 1 occur: the shares see the K best experts of a token, the
    probabilities all of them.

    Source: Fedus et al. 2021, arXiv:2101.03961, eq. 4-6. Ours counts all K choices, not only the first, and divides
    by all T*K of them, so that the shares sum to 1 and the value at balance does not depend on K.
    """
    share_E = counts_E.to(prob_sum_E.dtype) / counts_E.sum()
    return counts_E.shape[0] * torch.dot(share_E, prob_sum_E) / num_tokens


class LoadBalancingLoss(Balancer):
    """Adds `coefficient` times the mean over layers of the loss.

    With the scope `micro_batch` the shares are those of the micro-batch on its own rank, so a larger
    `micro_batch_size` balances over more tokens, which leaves more room for specialisation. With `global_batch` they
    are those of the whole step. The loss is linear in P_e, so the mean of such losses over equal micro-batches and
    ranks is the loss of the step as one batch.

    Source: Qiu et al. 2025, arXiv:2501.11873. Under gradient accumulation their shares are those of the micro-batches
    so far; ours are complete before the first backward pass.
    """

    def __init__(self, config: LoadBalancingLossConfig) -> None:
        self.coefficient = config.coefficient
        self.of_step = config.scope == "global_batch"

    @property
    def needs_step_demand(self) -> bool:
        return self.of_step

    def loss(self, routings: Sequence[LayerRouting], *, step_demand_LE: Tensor | None = None) -> Tensor | None:
        if not routings:
            return None
        demand_LE = step_demand_LE if self.of_step and step_demand_LE is not None else demand(routings)
        losses = [
            load_balancing_loss(demand_E, routing.prob_sum_E, num_tokens=routing.num_tokens)
            for routing, demand_E in zip(routings, demand_LE, strict=True)
        ]
        return self.coefficient * torch.stack(losses).mean()
