"""What routing decides, as one tuple of tensors."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.route.stats import RouterStats

Score = Literal["softmax", "sigmoid"]


class Routing(NamedTuple):
    """Who goes where, with what weight, and in which order the experts see it.

    A pair n = t*K + k is the k-th choice of token t. The expert order sorts pairs by expert and keeps pair order
    within one.

    expert_ids_TK: int64, by falling selection score, ties to the lower id.
    weights_TK: float32, differentiable with respect to the logits.
    counts_E: int64, pairs per expert; sums to T*K.
    offsets_E: int32, end of each expert's rows in expert order (cumulative counts), as `grouped_mm` wants it.
    permutation_N: int64, place in expert order -> pair.
    inverse_N: int64, pair -> place in expert order.
    prob_sum_E: float32, differentiable: sum over tokens of the router's distribution, for the load-balancing loss.
    z_sum: float32 scalar, differentiable: sum over tokens of logsumexp(logits)**2, for the router z-loss.
    stats: detached statistics of the pass.
    logits_TE: what was routed on, differentiable; float32 but in the fused kernel, which reads them as they come.
    score: how a logit became a score.
    """

    expert_ids_TK: Tensor
    weights_TK: Tensor
    counts_E: Tensor
    offsets_E: Tensor
    permutation_N: Tensor
    inverse_N: Tensor
    prob_sum_E: Tensor
    z_sum: Tensor
    stats: RouterStats
    logits_TE: Tensor
    score: Score

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.expert_ids_TK.shape[0]

    @property
    def top_k(self) -> int:
        """K."""
        return self.expert_ids_TK.shape[1]

    @property
    def num_pairs(self) -> int:
        """N = T*K."""
        return self.permutation_N.shape[0]


def distribution(logits_TE: Tensor, score: Score) -> Tensor:
    """Returns each token's differentiable distribution over the experts, whose sum over tokens is `prob_sum_E`.

    The softmax of the logits, or the sigmoid scores over their sum; float32, float64 for float64 logits. Computed
    anew: a routing pass need not keep it, and few ask for it.
    """
    accumulate = torch.float64 if logits_TE.dtype == torch.float64 else torch.float32
    log_scores_TE = logits_TE.to(accumulate)
    if score == "sigmoid":
        log_scores_TE = F.logsigmoid(log_scores_TE)
    return log_scores_TE.softmax(dim=-1)
