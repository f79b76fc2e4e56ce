"""What a forward pass tells about its routing, one record per mixture-of-experts layer.

Letters: T tokens, E experts, K experts per token.
"""

from typing import NamedTuple

from torch import Tensor

from kernels import RouterStats, Routing, Score, assignments


class LayerRouting(NamedTuple):
    """The routing of one micro-batch in one layer.

    layer: index in the whole model, dense layers counted.
    counts_E: int64, pairs each expert computes; what was asked of it is `stats.counts_E`.
    prob_sum_E: float32, differentiable: sum over tokens of the router's distribution; null experts after the E others.
    z_sum: float32 scalar, differentiable: sum over tokens of logsumexp(logits)**2.
    num_tokens: T.
    num_sequences: sequences of equal length the tokens come from, one after the other.
    stats: detached sums from which the router metrics are made.
    expert_ids_N: int64, the expert of each pair, by token, and for a token best first where it chose K.
    token_ids_N: int64, the token of each pair; None where every token has K.
    logits_TE: the router's logits, differentiable; null experts after the E others.
    score: how a logit became a score; with the logits it gives each token's distribution (`kernels.distribution`).
    auxiliary_loss: float32 scalar, differentiable: what the router adds to the training loss; None of most.
    """

    layer: int
    counts_E: Tensor
    prob_sum_E: Tensor
    z_sum: Tensor
    num_tokens: int
    num_sequences: int
    stats: RouterStats
    expert_ids_N: Tensor
    token_ids_N: Tensor | None
    logits_TE: Tensor
    score: Score
    auxiliary_loss: Tensor | None = None

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
            expert_ids_N=routing.expert_ids_N,
            token_ids_N=routing.token_ids_N,
            logits_TE=routing.logits_TE,
            score=routing.score,
            auxiliary_loss=routing.auxiliary_loss,
        )

    def assignments_TE(self) -> Tensor:
        """Returns bool [T, E]: whether the token chose the expert, whatever the kind of routing; made anew each time.

        Dropped pairs count: it is what the tokens (or experts) chose. Null experts stand after the E others.
        """
        return assignments(
            self.expert_ids_N, self.token_ids_N, num_tokens=self.num_tokens, num_experts=self.logits_TE.shape[1]
        )
