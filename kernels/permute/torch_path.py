"""Permutation and weighted un-permutation as gathers in both directions: no atomics, one pass over the rows each.

Torch's embedding operations are what fuses a gather with a weighted sum over K rows. Times at T=2048, K=8, D=128 on
one CPU thread: the weighted sum 0.5 ms (gather, multiply and sum: 1.8 ms), the gradient of the rows 0.55 ms (gather and
multiply: 0.76 ms), that of the weights 0.56 ms (gather and dot products: 1.9 ms), a plain gather 0.42 ms
(`index_select`: 0.70 ms).

Letters: T tokens, D model dim, K experts per token, N = T*K pairs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.route.routing import Routing

_SUM_MODE = 0  # embedding_bag's own code for mode="sum"


def permute_torch(x_TD: Tensor, routing: Routing) -> Tensor:
    """Returns x_ND."""
    return _Permute.apply(x_TD, routing.permutation_N, routing.inverse_N, routing.top_k)


def unpermute_torch(y_ND: Tensor, routing: Routing, weights_TK: Tensor) -> Tensor:
    """Returns out_TD."""
    return _Unpermute.apply(y_ND, weights_TK, routing.permutation_N, routing.inverse_N)


def _sum_rows(rows: Tensor, ids: Tensor, weights: Tensor | None) -> Tensor:
    """Returns, for each row of the matrix `ids`, the (weighted) float32 sum of the `rows` it names."""
    return F.embedding_bag(ids, rows.float(), mode="sum", per_sample_weights=weights)


def _dot_rows(sums_TD: Tensor, rows_ND: Tensor, ids_TK: Tensor) -> Tensor:
    """Returns dots_TK, the float32 dot product of sums_TD[t] with rows_ND[ids_TK[t, k]].

    The operator behind embedding_bag's gradient of its weights; the sum need not be computed again for it.
    """
    num_tokens, top_k = ids_TK.shape
    device = ids_TK.device
    starts_T = torch.arange(0, num_tokens * top_k, top_k, device=device)
    token_N = torch.arange(num_tokens, device=device)[:, None].expand(num_tokens, top_k).reshape(-1)
    dots_N = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        sums_TD.float(), rows_ND.float(), ids_TK.reshape(-1), starts_T, token_N, _SUM_MODE
    )
    return dots_N.view(num_tokens, top_k)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, permutation_N: Tensor, inverse_N: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(inverse_N)
        ctx.top_k = top_k
        return F.embedding(permutation_N // top_k, x_TD)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (dx_ND,) = grad_outputs
        (inverse_N,) = ctx.saved_tensors
        return _sum_rows(dx_ND, inverse_N.view(-1, ctx.top_k), None).to(dx_ND.dtype), None, None, None


class _Unpermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, weights_TK: Tensor, permutation_N: Tensor, inverse_N: Tensor) -> Tensor:
        ctx.save_for_backward(y_ND, weights_TK, permutation_N, inverse_N)
        return _sum_rows(y_ND, inverse_N.view(weights_TK.shape), weights_TK.float()).to(y_ND.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (dout_TD,) = grad_outputs
        y_ND, weights_TK, permutation_N, inverse_N = ctx.saved_tensors
        dy_ND = dweights_TK = None
        if ctx.needs_input_grad[0]:
            token_N1 = (permutation_N // weights_TK.shape[1])[:, None]
            weight_N1 = weights_TK.float().reshape(-1)[permutation_N][:, None]
            dy_ND = _sum_rows(dout_TD, token_N1, weight_N1).to(y_ND.dtype)
        if ctx.needs_input_grad[1]:
            dweights_TK = _dot_rows(dout_TD, y_ND, inverse_N.view(weights_TK.shape)).to(weights_TK.dtype)
        return dy_ND, dweights_TK, None, None
