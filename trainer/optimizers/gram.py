"""The two Gram matrices of a gradient, which Shampoo and what follows from it average.

Letters: M rows, N columns, of any number of matrices stacked before them.
"""

import torch
from torch import Tensor

GRAMS = ("left_gram", "right_gram")
"""Names of G G^T (M x M) and G^T G (N x N) in an optimizer's state."""


def gram_of(gradient: Tensor, side: str) -> Tensor:
    """Returns G G^T or G^T G of each matrix."""
    return gradient @ gradient.mT if side == "left_gram" else gradient.mT @ gradient


def new_grams(gradient: Tensor, *, max_dim: int) -> dict[str, Tensor]:
    """Returns zeros for the Gram matrices of the sides of at most `max_dim`."""
    sizes = zip(GRAMS, gradient.shape[-2:], strict=True)
    return {side: gradient.new_zeros((*gradient.shape[:-2], size, size)) for side, size in sizes if size <= max_dim}


def whole_or_identity(gram: Tensor) -> Tensor:
    """Returns each matrix, or the identity for one that is not finite.

    A decomposition would raise on it, in the middle of a step that the telemetry is about to call diverged.
    """
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.where(gram.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True), gram, identity)
