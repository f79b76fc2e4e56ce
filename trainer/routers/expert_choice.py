"""Expert choice: the experts take tokens, instead of tokens experts.

Letters: T tokens, D model dim, E experts, G groups, S tokens per group (T/G), C tokens per expert and group, N pairs.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import Routing, assignments, largest_ids, route_pairs
from trainer.config.routers import ExpertChoiceRouterConfig
from trainer.routers.looking_ahead import LookingAheadRouter

_MOST_PREDICTED = 4
"""Most experts a token is predicted to have, in units of the average: bounds the memory of an evaluation whose
predictor is not trained yet."""


class Choice(NamedTuple):
    """Who takes whom: int64 ids, one of each per pair."""

    token_ids_N: Tensor
    expert_ids_N: Tensor


class ExpertChoiceRouter(LookingAheadRouter):
    """Each expert takes the C tokens of a group that it scores highest; the scores are the weights.

    In training the group is the micro-batch or each sequence. In evaluation the predictor decides, token by token; a
    router without one lets each sequence be a group, so that its figures do not depend on how a batch is made up, but
    look ahead.

    Source: Zhou et al. 2022, arXiv:2202.09368, section 3.2; without the bound on the experts of a token of section 3.3.
    """

    predictor_weight: nn.Parameter | None
    predictor_bias: nn.Parameter | None

    def __init__(self, config: ExpertChoiceRouterConfig, *, dim: int, num_experts: int, top_k: int) -> None:
        super().__init__(config, dim=dim, num_experts=num_experts, top_k=top_k)
        self.choice = config
        self.num_experts = num_experts
        shapes = {"predictor_weight": (num_experts, dim), "predictor_bias": (num_experts,)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)) if config.predictor else None)

    def forward(
        self,
        x_TD: Tensor,
        selection_bias_E: Tensor | None,
        tokens_T: Tensor | None = None,
        *,
        num_sequences: int = 1,
    ) -> Routing:
        del selection_bias_E, tokens_T  # a bias would move all tokens of an expert alike
        logits_TE = self.logits(x_TD)
        num_groups = self._num_groups(len(x_TD), num_sequences=num_sequences)
        choice = self.predicted(x_TD) if num_groups is None else self._chosen(logits_TE, num_groups=num_groups)
        routing = route_pairs(logits_TE, *choice, score=self.scoring.score, scale=self.scoring.scale)
        if self.predictor_weight is None or not self.training:
            return routing
        taken_TE = self.as_matrix(choice, num_tokens=len(x_TD)).float()
        loss = F.binary_cross_entropy_with_logits(self.predictor_logits(x_TD), taken_TE)
        return routing._replace(auxiliary_loss=self.choice.predictor_coefficient * loss)

    def predictor_logits(self, x_TD: Tensor) -> Tensor:
        """Returns float32 log-odds_TE that an expert takes a token, with a gradient to the predictor alone."""
        assert self.predictor_weight is not None, "asked for only where the config has a predictor"
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = x_TD.detach().to(self.predictor_weight.dtype)
            return F.linear(x_TD, self.predictor_weight, self.predictor_bias)

    def as_matrix(self, choice: Choice, *, num_tokens: int) -> Tensor:
        """Returns bool [T, E]: whether the expert takes the token."""
        return assignments(choice.expert_ids_N, choice.token_ids_N, num_tokens=num_tokens, num_experts=self.num_experts)

    @torch.no_grad()
    def predicted(self, x_TD: Tensor) -> Choice:
        """Returns the choice by the predictor, for each token from that token alone.

        The number of pairs depends on the tokens, so this waits for the device; training does not come here.
        """
        logits_TE = self.predictor_logits(x_TD)
        most = min(math.ceil(_MOST_PREDICTED * self.choice.experts_per_token(self.top_k)), self.num_experts)
        allowed_TE = torch.zeros_like(logits_TE, dtype=torch.bool)
        allowed_TE.scatter_(1, largest_ids(logits_TE.float(), most), True)
        token_ids_N, expert_ids_N = (allowed_TE & (logits_TE > 0)).nonzero(as_tuple=True)
        return Choice(token_ids_N, expert_ids_N)

    @torch.no_grad()
    def _chosen(self, logits_TE: Tensor, *, num_groups: int) -> Choice:
        """Returns the choice by the highest scores.

        By the logarithms of softmax scores and by the logits of sigmoid ones, rather: these order tokens as the scores
        do, also where the scores are too near to 0, or sigmoids to 1, for float32 to tell them apart.
        """
        log_scores_TE = logits_TE.log_softmax(dim=-1) if self.scoring.score == "softmax" else logits_TE
        capacity = self.choice.capacity(len(logits_TE) // num_groups, num_experts=self.num_experts, top_k=self.top_k)
        return best_tokens(log_scores_TE.float(), num_groups=num_groups, capacity=capacity)

    def _num_groups(self, num_tokens: int, *, num_sequences: int) -> int | None:
        """Returns the number of groups that experts now choose from; None where the predictor decides."""
        if self.training:
            return 1 if self.choice.scope == "micro_batch" else num_sequences
        num_chunks = self.num_chunks(num_tokens)
        return num_sequences if num_chunks is None and not self.choice.predictor else num_chunks


@torch.no_grad()
def best_tokens(value_TE: Tensor, *, num_groups: int, capacity: int) -> Choice:
    """Returns, for each expert and group of T/G consecutive tokens, the `capacity` tokens of highest float32 value.

    Ties go to the earlier token.
    """
    num_tokens, num_experts = value_TE.shape
    group_size = num_tokens // num_groups
    value_GES = value_TE.unflatten(0, (num_groups, group_size)).transpose(1, 2)
    ids_GEC = largest_ids(value_GES.flatten(0, 1), capacity).unflatten(0, (num_groups, num_experts))
    first_G11 = torch.arange(0, num_tokens, group_size, device=value_TE.device)[:, None, None]
    experts_E1 = torch.arange(num_experts, device=value_TE.device)[:, None]
    return Choice((first_G11 + ids_GEC).flatten(), experts_E1.expand_as(ids_GEC).flatten())
