"""Token choice within a token's best groups of experts.

Letters: T tokens, D model dim, E experts, G groups, H experts per group.
"""

import torch
from torch import Tensor

from kernels import Routing, route
from trainer.config.routers import GroupLimitedRouterConfig
from trainer.routers.base import LinearRouter


class GroupLimitedRouter(LinearRouter):
    """First the groups, by their best one or two scores (selection bias included), then the experts within them.

    Expert e is in group e // H. Experts of other groups are out of the choice, however well they score; they stay in
    the distribution and the statistics.

    Source: DeepSeek-V2, arXiv:2405.04434, section 2.2.2; DeepSeek-V3, arXiv:2412.19437, section 2.1.2.
    """

    def __init__(self, config: GroupLimitedRouterConfig, *, dim: int, num_experts: int, top_k: int) -> None:
        super().__init__(config, dim=dim, num_experts=num_experts, top_k=top_k)
        self.num_groups = config.num_groups
        self.groups_per_token = config.groups_per_token
        self.num_counted = 1 if config.group_score == "best" else 2

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
        return route(
            logits_TE,
            top_k=self.top_k,
            score=self.scoring.score,
            normalize=self.scoring.normalize,
            scale=self.scoring.scale,
            selection_TE=self._selection(logits_TE, selection_bias_E),
        )

    @torch.no_grad()
    def _selection(self, logits_TE: Tensor, selection_bias_E: Tensor | None) -> Tensor:
        """Returns the scores with the bias, -inf outside of the token's groups."""
        selection_TE = self.scores(logits_TE)
        if selection_bias_E is not None:
            selection_TE = selection_TE + selection_bias_E
        selection_TGH = selection_TE.unflatten(-1, (self.num_groups, -1))
        group_score_TG = selection_TGH.topk(self.num_counted, dim=-1).values.sum(dim=-1)
        refused_TG = torch.ones_like(group_score_TG, dtype=torch.bool)
        refused_TG.scatter_(1, group_score_TG.topk(self.groups_per_token, dim=-1).indices, False)
        return selection_TGH.masked_fill(refused_TG[..., None], float("-inf")).flatten(1)
