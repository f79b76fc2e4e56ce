"""Token choice: every token takes the `top_k` experts it scores highest.

Letters: T tokens, D model dim, E experts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import Routing, route
from trainer.config.routers import TopKRouterConfig
from trainer.routers.base import Router


class TopKRouter(Router):
    """A linear map to E logits, then `kernels.route`.

    Source: Shazeer et al. 2017, arXiv:1701.06538, eq. 3-5, without noise; float32: Fedus et al. 2021,
    arXiv:2101.03961, section 2.4.
    """

    def __init__(self, config: TopKRouterConfig, *, dim: int, num_experts: int, top_k: int) -> None:
        super().__init__(config, dim=dim, num_experts=num_experts, top_k=top_k)
        self.config = config
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(num_experts, dim))

    def forward(self, x_TD: Tensor, selection_bias_E: Tensor | None) -> Routing:
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = F.linear(x_TD.to(self.weight.dtype), self.weight)
        return route(
            logits_TE,
            top_k=self.top_k,
            score=self.config.score,
            normalize=self.config.normalize,
            scale=self.config.scale,
            selection_bias_E=selection_bias_E,
        )
