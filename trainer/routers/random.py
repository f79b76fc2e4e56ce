"""Random routing.

Letters: T tokens, D model dim, E experts.
"""

import torch
from torch import Tensor

from kernels import Routing, route
from trainer.config.routers import RandomRouterConfig
from trainer.routers.base import Router

_EVALUATION_SEED = 0


class RandomRouter(Router):
    """K different experts for each token, all equally likely, drawn anew in every forward pass; the weights are 1/K.

    What a router has to beat: no expert can specialise, the load is as even as chance makes it. The distribution in
    the statistics is uniform. Evaluation draws from a generator of its own, seeded alike each time, so that it is
    reproducible.
    """

    def __init__(self, config: RandomRouterConfig, *, dim: int, num_experts: int, top_k: int) -> None:
        super().__init__(config, dim=dim, num_experts=num_experts, top_k=top_k)
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
        del selection_bias_E, tokens_T, num_sequences
        generator = None if self.training else torch.Generator(x_TD.device).manual_seed(_EVALUATION_SEED)
        shape = (x_TD.shape[0], self.num_experts)
        return route(
            torch.zeros(shape, dtype=torch.float32, device=x_TD.device),
            top_k=self.top_k,
            normalize=True,
            selection_TE=torch.rand(shape, dtype=torch.float32, device=x_TD.device, generator=generator),
        )
