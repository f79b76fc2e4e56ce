"""What routing decides, as one tuple of tensors."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.route.stats import RouterStats

Score = Literal["softmax", "sigmoid"]


class Routing(NamedTuple):
    """Who goes where, with what weight, and in which order the experts see it.

    The N pairs stand in pair order: by token. A routing is *uniform* when every token has K pairs (pair n = t*K + k is
    the k-th choice of token t), else *ragged*: token t has 0 to E pairs, from `token_starts_T[t]` on. The expert order
    sorts pairs by expert and keeps pair order within one.

    A *partial* routing (`kernels.admit`) has pairs that no expert computes: dropped ones, and those of null experts.
    They keep their place in pair order, weigh 0, and come last in expert order, behind `offsets_E[-1]`.

    expert_ids_N: int64. In a uniform routing a token's experts stand by falling selection score, ties to the lower id;
        in a ragged one by id. An id of E or more is a null expert's.
    weights_N: float32, differentiable with respect to the logits.
    counts_E: int64, pairs each expert computes.
    offsets_E: int32, end of each expert's rows in expert order (cumulative counts), as `grouped_mm` wants it.
    permutation_N: int64, place in expert order -> pair.
    inverse_N: int64, pair -> place in expert order.
    prob_sum_E: float32, differentiable: sum over tokens of the router's distribution, for the load-balancing loss;
        null experts after the E others, as in `logits_TE`.
    z_sum: float32 scalar, differentiable: sum over tokens of logsumexp(logits)**2, for the router z-loss.
    stats: detached statistics of the pass.
    logits_TE: what was routed on, differentiable; float32 but in the fused kernel, which reads them as they come.
    score: how a logit became a score.
    token_ids_N: int64, the token of each pair of a ragged routing; None when uniform.
    token_starts_T: int64, the first pair of each token of a ragged routing; None when uniform.
    is_partial: whether there may be rows behind `offsets_E[-1]`; known without asking the device.
    null_weights_T: float32, differentiable: the weight a token gave to null experts; None without any.
    auxiliary_loss: float32 scalar, differentiable: what a router adds to the training loss to learn something besides
        the choice; None of most.
    """

    expert_ids_N: Tensor
    weights_N: Tensor
    counts_E: Tensor
    offsets_E: Tensor
    permutation_N: Tensor
    inverse_N: Tensor
    prob_sum_E: Tensor
    z_sum: Tensor
    stats: RouterStats
    logits_TE: Tensor
    score: Score
    token_ids_N: Tensor | None = None
    token_starts_T: Tensor | None = None
    is_partial: bool = False
    null_weights_T: Tensor | None = None
    auxiliary_loss: Tensor | None = None

    @property
    def is_uniform(self) -> bool:
        """Whether every token has K pairs."""
        return self.token_starts_T is None

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.logits_TE.shape[0]

    @property
    def num_pairs(self) -> int:
        """N; T*K when uniform."""
        return self.expert_ids_N.shape[0]

    @property
    def top_k(self) -> int:
        """K of a uniform routing; ValueError of a ragged one."""
        if not self.is_uniform:
            raise ValueError("a ragged routing has no top_k; use num_pairs, token_ids_N or assignments_TE()")
        return self.num_pairs // self.num_tokens

    @property
    def expert_ids_TK(self) -> Tensor:
        """`expert_ids_N` of a uniform routing, one row per token; ValueError of a ragged one."""
        return self.expert_ids_N.view(-1, self.top_k)

    @property
    def weights_TK(self) -> Tensor:
        """`weights_N` of a uniform routing, one row per token; ValueError of a ragged one."""
        return self.weights_N.view(-1, self.top_k)

    @property
    def row_tokens_N(self) -> Tensor:
        """int64, place in expert order -> token."""
        if self.token_ids_N is None:
            return self.permutation_N // self.top_k
        return self.token_ids_N[self.permutation_N]


def assignments(expert_ids_N: Tensor, token_ids_N: Tensor | None, *, num_tokens: int, num_experts: int) -> Tensor:
    """Returns bool [T, E]: whether the token chose the expert, dropped pairs included.

    Args:
        expert_ids_N: the experts of the pairs in pair order, each below `num_experts`.
        token_ids_N: the tokens of the pairs; None when every token has equally many.
        num_tokens: T.
        num_experts: the router's outputs, null experts included.
    """
    chosen_TE = torch.zeros(num_tokens, num_experts, dtype=torch.bool, device=expert_ids_N.device)
    if token_ids_N is None:
        return chosen_TE.scatter_(1, expert_ids_N.view(num_tokens, -1), True)
    return chosen_TE.view(-1).scatter_(0, token_ids_N * num_experts + expert_ids_N, True).view(chosen_TE.shape)


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
