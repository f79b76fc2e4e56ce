"""The two Gram matrices of a gradient, which Shampoo and what follows from it average.

Letters: M rows, N columns, of any number of matrices stacked before them.
"""

import torch
from torch import Tensor

GRAMS = ("left_gram", "right_gram")
"""Names of G G^T (M x M) and G^T G (N x N) in an optimizer's state."""

_SMALLEST_SHARE = 1e-12
"""Of the largest element of the diagonal, in the place of zeros: nothing beside a float32 eigenvalue."""


def gram_of(gradient: Tensor, side: str) -> Tensor:
    """Returns G G^T or G^T G of each matrix."""
    return gradient @ gradient.mT if side == "left_gram" else gradient.mT @ gradient


def new_grams(gradient: Tensor, *, max_dim: int) -> dict[str, Tensor]:
    """Returns zeros for the Gram matrices of the sides of at most `max_dim`."""
    sizes = zip(GRAMS, gradient.shape[-2:], strict=True)
    return {side: gradient.new_zeros((*gradient.shape[:-2], size, size)) for side, size in sizes if size <= max_dim}


def eigh_of_gram(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the eigenvalues, rising, and the eigenvectors of each positive semidefinite matrix; waits for the device.

    Those of the identity for a matrix that is not finite: a decomposition would raise on it, in the middle of a step
    that the telemetry is about to call diverged. Rows of zeros, such as those of the tokens that a batch lacks in the
    Gram matrix of an embedding's gradient, are given a tiny eigenvalue of their own: LAPACK's divide and conquer fails
    to converge on many of them.
    """
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    gram = torch.where(gram.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True), gram, identity)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    tiny = _SMALLEST_SHARE * diagonal.amax(dim=-1, keepdim=True)
    values, vectors = torch.linalg.eigh(gram + torch.diag_embed(torch.where(diagonal == 0, tiny, 0.0)))
    return values, vectors
