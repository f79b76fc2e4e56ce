"""Permutation and weighted un-permutation by plain indexing and autograd's own backward: the definition of correct."""

import torch
from torch import Tensor

from kernels.route.routing import Routing


def permute_reference(x_TD: Tensor, routing: Routing) -> Tensor:
    """Returns x_ND: at each place in expert order the row of its pair's token; zeros where no expert computes it."""
    return _owned(x_TD[routing.row_tokens_N], routing)


def unpermute_reference(y_ND: Tensor, routing: Routing, weights_N: Tensor) -> Tensor:
    """Returns out_TD; computed in float64 for float64 rows, else in float32."""
    accumulate = torch.float64 if y_ND.dtype == torch.float64 else torch.float32
    weighted_ND = _owned(y_ND, routing)[routing.inverse_N].to(accumulate) * weights_N.to(accumulate)[:, None]
    if routing.token_ids_N is None:
        out_TD = weighted_ND.unflatten(0, (routing.num_tokens, routing.top_k)).sum(dim=1)
    else:
        out_TD = weighted_ND.new_zeros(routing.num_tokens, y_ND.shape[1])
        out_TD = out_TD.index_add(0, routing.token_ids_N, weighted_ND)
    return out_TD.to(y_ND.dtype)


def _owned(rows_ND: Tensor, routing: Routing) -> Tensor:
    """Returns the rows with zeros, and a gradient of zero, for those behind the last expert's."""
    places_N = torch.arange(rows_ND.shape[0], device=rows_ND.device)
    return torch.where((places_N < routing.offsets_E[-1])[:, None], rows_ND, 0.0)
