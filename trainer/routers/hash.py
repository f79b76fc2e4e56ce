"""Routing by a hash of the token.

Letters: T tokens, D model dim, E experts.
"""

import torch
from torch import Tensor

from kernels import Routing, route
from trainer.config.routers import HashRouterConfig
from trainer.routers.base import Router

_LOW_32_BITS = 0xFFFFFFFF


class HashRouter(Router):
    """Each token of the vocabulary goes to the `top_k` experts for which a hash of (token, expert) is largest.

    That draws `top_k` different experts for each token, every expert as likely as any other, without a table. The
    weights are 1/K. The router has no logits: its distribution counts as uniform in the statistics, and how even the
    load is depends on how often each token of the vocabulary occurs. Every layer hashes alike.

    Source: Roller et al. 2021, arXiv:2106.04426, random hash.
    """

    def __init__(self, config: HashRouterConfig, *, dim: int, num_experts: int, top_k: int) -> None:
        super().__init__(config, dim=dim, num_experts=num_experts, top_k=top_k)
        self.seed = config.seed
        self.num_experts = num_experts
        self.top_k = top_k

    def forward(
        self,
        x_TD: Tensor,
        selection_bias_E: Tensor | None,
        tokens_T: Tensor | None = None,
        *,
        num_sequences: int = 1,
    ) -> Routing:
        del selection_bias_E, num_sequences
        if tokens_T is None:
            raise ValueError("tokens_T is missing; hash routing chooses by the tokens of the vocabulary")
        experts_E = torch.arange(self.num_experts, device=tokens_T.device)
        hashed_TE = mixed(mixed(tokens_T + self.seed * 0x9E3779B9)[:, None] + experts_E * 0x85EBCA6B)
        # The upper 24 bits, which float32 holds exactly.
        selection_TE = (hashed_TE >> 8).float() * 2.0**-24
        return route(
            torch.zeros(selection_TE.shape, dtype=torch.float32, device=x_TD.device),
            top_k=self.top_k,
            normalize=True,
            selection_TE=selection_TE,
        )


def mixed(numbers: Tensor) -> Tensor:
    """Returns 32 well-mixed bits of each int64, as int64: an invertible map of the lower 32.

    Source: Wellons 2018, "Prospecting for hash functions", https://nullprogram.com/blog/2018/07/31/, lowbias32.
    """
    numbers = numbers & _LOW_32_BITS
    numbers = ((numbers ^ (numbers >> 16)) * 0x7FEB352D) & _LOW_32_BITS
    numbers = ((numbers ^ (numbers >> 15)) * 0x846CA68B) & _LOW_32_BITS
    return numbers ^ (numbers >> 16)
