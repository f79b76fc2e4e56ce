"""Permutation and weighted un-permutation by plain indexing and autograd's own backward: the definition of correct."""

import torch
from torch import Tensor

from kernels.route.routing import Routing


def permute_reference(x_TD: Tensor, routing: Routing) -> Tensor:
    """Returns x_ND; the pair t*K + k belongs to token t."""
    return x_TD[routing.permutation_N // routing.top_k]


def unpermute_reference(y_ND: Tensor, routing: Routing, weights_TK: Tensor) -> Tensor:
    """Returns out_TD; computed in float64 for float64 rows, else in float32."""
    accumulate = torch.float64 if y_ND.dtype == torch.float64 else torch.float32
    y_TKD = y_ND[routing.inverse_N].reshape(routing.num_tokens, routing.top_k, -1)
    return (y_TKD.to(accumulate) * weights_TK.to(accumulate)[:, :, None]).sum(dim=1).to(y_ND.dtype)
