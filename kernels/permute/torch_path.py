"""Permutation and weighted un-permutation as gathers in both directions: no atomics, one pass over the rows each.

Torch's embedding operations are what fuses a gather with a weighted sum over K rows. Times at T=2048, K=8, D=128 on
one CPU thread: the weighted sum 0.5 ms (gather, multiply and sum: 1.8 ms), the gradient of the rows 0.55 ms (gather and
multiply: 0.76 ms), that of the weights 0.56 ms (gather and dot products: 1.9 ms), a plain gather 0.42 ms
(`index_select`: 0.70 ms).

In a partial routing the rows of pairs that no expert computes are set to zero where they would be read: their results
before they are weighted, and the gradients that come back for them. A ragged routing has bags of different lengths
instead of rows of K; every bag is still summed by one thread, in pair order, so repeated passes give the same bits.

Letters: T tokens, D model dim, K experts per token, N pairs (T*K in a uniform routing).
"""

from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.route.routing import Routing

_SUM_MODE = 0  # embedding_bag's own code for mode="sum"


class _Pairs(NamedTuple):
    """Where the rows of each token's pairs are; the tensors that the gradients need again. Fields as in `Routing`.

    end_1: how many rows experts own; None for all.
    """

    inverse_N: Tensor
    token_ids_N: Tensor | None
    token_starts_T: Tensor | None
    end_1: Tensor | None
    num_tokens: int

    @classmethod
    def of(cls, routing: Routing) -> Self:
        end_1 = routing.offsets_E[-1:] if routing.is_partial else None
        return cls(routing.inverse_N, routing.token_ids_N, routing.token_starts_T, end_1, routing.num_tokens)

    def owned(self, rows_ND: Tensor) -> Tensor:
        """Returns the rows with zeros for those that no expert owns, which hold anything: NaN times 0 is NaN."""
        if self.end_1 is None:
            return rows_ND
        places_N = torch.arange(rows_ND.shape[0], dtype=self.end_1.dtype, device=rows_ND.device)
        return rows_ND.masked_fill((places_N >= self.end_1)[:, None], 0.0)

    def sum(self, rows_ND: Tensor, weights_N: Tensor | None) -> Tensor:
        """Returns, for each token, the (weighted) float32 sum of the rows of its pairs."""
        ids = self.inverse_N
        if self.token_starts_T is None:
            ids = ids.view(self.num_tokens, -1)
            weights_N = None if weights_N is None else weights_N.view(ids.shape)
        return F.embedding_bag(
            ids, rows_ND.float(), offsets=self.token_starts_T, mode="sum", per_sample_weights=weights_N
        )

    def dot(self, sums_TD: Tensor, rows_ND: Tensor) -> Tensor:
        """Returns dots_N, for each pair the float32 dot product of its token's row of `sums_TD` with its own row.

        The operator behind embedding_bag's gradient of its weights; the sum need not be computed again for it.
        """
        starts_T, token_ids_N = self.token_starts_T, self.token_ids_N
        if starts_T is None or token_ids_N is None:
            num_pairs, device = self.inverse_N.shape[0], rows_ND.device
            top_k = num_pairs // self.num_tokens
            starts_T = torch.arange(0, num_pairs, top_k, device=device)
            token_ids_N = torch.arange(self.num_tokens, device=device)[:, None].expand(-1, top_k).reshape(-1)
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            sums_TD.float(), rows_ND.float(), self.inverse_N, starts_T, token_ids_N, _SUM_MODE
        )


def permute_torch(x_TD: Tensor, routing: Routing) -> Tensor:
    """Returns x_ND."""
    return _Permute.apply(x_TD, routing.row_tokens_N, *_Pairs.of(routing))


def unpermute_torch(y_ND: Tensor, routing: Routing, weights_N: Tensor) -> Tensor:
    """Returns out_TD."""
    return _Unpermute.apply(y_ND, weights_N, routing.permutation_N, *_Pairs.of(routing))


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, row_tokens_N: Tensor, *pairs: Any) -> Tensor:
        *kept, ctx.num_tokens = pairs
        ctx.save_for_backward(*kept)
        return F.embedding(row_tokens_N, x_TD)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dx_ND,) = grad_outputs
        inverse_N, token_ids_N, token_starts_T, end_1 = ctx.saved_tensors
        pairs = _Pairs(inverse_N, token_ids_N, token_starts_T, end_1, ctx.num_tokens)
        return pairs.sum(pairs.owned(dx_ND), None).to(dx_ND.dtype), None, None, None, None, None, None


class _Unpermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, weights_N: Tensor, permutation_N: Tensor, *pairs: Any) -> Tensor:
        *kept, ctx.num_tokens = pairs
        y_ND = _Pairs(*pairs).owned(y_ND)
        ctx.save_for_backward(y_ND, weights_N, permutation_N, *kept)
        return _Pairs(*pairs).sum(y_ND, weights_N.float()).to(y_ND.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dout_TD,) = grad_outputs
        y_ND, weights_N, permutation_N, inverse_N, token_ids_N, token_starts_T, end_1 = ctx.saved_tensors
        pairs = _Pairs(inverse_N, token_ids_N, token_starts_T, end_1, ctx.num_tokens)
        dy_ND = dweights_N = None
        if ctx.needs_input_grad[0]:
            if pairs.token_ids_N is None:
                token_N = permutation_N // (permutation_N.shape[0] // pairs.num_tokens)
            else:
                token_N = pairs.token_ids_N[permutation_N]
            weight_N1 = weights_N.float()[permutation_N][:, None]
            bags = F.embedding_bag(token_N[:, None], dout_TD.float(), mode="sum", per_sample_weights=weight_N1)
            dy_ND = bags.to(y_ND.dtype)
        if ctx.needs_input_grad[1]:
            dweights_N = pairs.dot(dout_TD, y_ND).to(weights_N.dtype)
        return dy_ND, dweights_N, None, None, None, None, None, None
