"""What a forward pass tells about its routing, one record per mixture-of-experts layer.

Letters: T tokens, E experts, K experts per token.
"""

from typing import NamedTuple

from torch import Tensor

from kernels import RouterStats, Routing, Score


class LayerRouting(NamedTuple):
    """The routing of one micro-batch in one layer.

    layer: index in the whole model, dense layers counted.
    counts_E: int64, routed pairs per expert; sums to T*K.
    prob_sum_E: float32, differentiable: sum over tokens of the router's distribution.
    z_sum: float32 scalar, differentiable: sum over tokens of logsumexp(logits)**2.
    num_tokens: T.
    num_sequences: sequences of equal length the tokens come from, one after the other.
    stats: detached sums from which the router metrics are made.
    expert_ids_TK: int64, detached, best first.
    logits_TE: the router's logits, differentiable.
    score: how a logit became a score; with the logits it gives each token's distribution (`kernels.distribution`).
    """

    layer: int
    counts_E: Tensor
    prob_sum_E: Tensor
    z_sum: Tensor
    num_tokens: int
    num_sequences: int
    stats: RouterStats
    expert_ids_TK: Tensor
    logits_TE: Tensor
    score: Score

    @classmethod
    def of(cls, routing: Routing, *, layer: int, num_sequences: int = 1) -> "LayerRouting":
        """Returns what of `routing` outlives the layer: without the orders and weights only the experts need."""
        return cls(
            layer=layer,
            counts_E=routing.counts_E,
            prob_sum_E=routing.prob_sum_E,
            z_sum=routing.z_sum,
            num_tokens=routing.num_tokens,
            num_sequences=num_sequences,
            stats=routing.stats,
            expert_ids_TK=routing.expert_ids_TK,
            logits_TE=routing.logits_TE,
            score=routing.score,
        )
