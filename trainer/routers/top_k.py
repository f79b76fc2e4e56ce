"""Token choice: every token takes the `top_k` experts it scores highest.

Letters: T tokens, D model dim, E experts.
"""

from torch import Tensor

from kernels import Routing, route
from trainer.config.routers import TopKRouterConfig
from trainer.routers.base import LinearRouter


class TopKRouter(LinearRouter):
    """A linear map to E logits, then `kernels.route`.

    Source: Shazeer et al. 2017, arXiv:1701.06538, eq. 3-5, without the learned noise.
    """

    def __init__(self, config: TopKRouterConfig, *, dim: int, num_experts: int, top_k: int) -> None:
        super().__init__(config, dim=dim, num_experts=num_experts, top_k=top_k)

    def forward(
        self,
        x_TD: Tensor,
        selection_bias_E: Tensor | None,
        tokens_T: Tensor | None = None,
        *,
        num_sequences: int = 1,
    ) -> Routing:
        del tokens_T, num_sequences
        return route(
            self.logits(x_TD),
            top_k=self.top_k,
            score=self.scoring.score,
            normalize=self.scoring.normalize,
            scale=self.scoring.scale,
            selection_bias_E=selection_bias_E,
        )
