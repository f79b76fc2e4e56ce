"""Token choice by a balanced assignment.

Letters: T tokens, D model dim, E experts, G groups, S tokens per group.
"""

import math

import torch
from torch import Tensor

from kernels import Routing, route
from trainer.config.routers import SinkhornRouterConfig
from trainer.routers.looking_ahead import LookingAheadRouter


class SinkhornRouter(LookingAheadRouter):
    """In training chooses by the optimal-transport plan between the tokens of a micro-batch and equally loaded experts.

    The plan only chooses; the weights are those of the scores. A selection bias is added to the plan. Evaluation
    chooses as top-k does: a token's experts then depend on that token alone.

    Source: S-BASE of Clark et al. 2022, arXiv:2202.01169, for any number of experts per token.
    """

    def __init__(self, config: SinkhornRouterConfig, *, dim: int, num_experts: int, top_k: int) -> None:
        super().__init__(config, dim=dim, num_experts=num_experts, top_k=top_k)
        self.num_iterations = config.num_iterations

    def forward(
        self,
        x_TD: Tensor,
        selection_bias_E: Tensor | None,
        tokens_T: Tensor | None = None,
        *,
        num_sequences: int = 1,
    ) -> Routing:
        del tokens_T, num_sequences
        logits_TE = self.logits(x_TD)
        num_groups = 1 if self.training else self.num_chunks(len(logits_TE))
        selection_TE = None
        if num_groups is not None:
            selection_TE = transport_plan(logits_TE, num_iterations=self.num_iterations, num_groups=num_groups)
            if selection_bias_E is not None:
                selection_TE = selection_TE + selection_bias_E
        return route(
            logits_TE,
            top_k=self.top_k,
            score=self.scoring.score,
            normalize=self.scoring.normalize,
            scale=self.scoring.scale,
            selection_bias_E=selection_bias_E if selection_TE is None else None,
            selection_TE=selection_TE,
        )


@torch.no_grad()
def transport_plan(logits_TE: Tensor, *, num_iterations: int, num_groups: int = 1) -> Tensor:
    """Returns exp(logits + a_T + b_E) with rows that sum to 1 and, the more iterations the better, columns to T/E.

    Sinkhorn's alternation in logarithms, so that no logit is too large; a fixed number of times, so that nothing waits
    for the device. With several groups of consecutive tokens, each has a plan of its own.
    """
    log_plan_GSE = logits_TE.detach().unflatten(0, (num_groups, -1))
    log_load = math.log(log_plan_GSE.shape[1] / log_plan_GSE.shape[2])
    for _ in range(num_iterations):
        log_plan_GSE = log_plan_GSE - log_plan_GSE.logsumexp(dim=1, keepdim=True) + log_load
        log_plan_GSE = log_plan_GSE - log_plan_GSE.logsumexp(dim=2, keepdim=True)
    return log_plan_GSE.exp().flatten(0, 1)
