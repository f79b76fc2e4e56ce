"""The random Hadamard transform: spreads an outlier over the 16 rows it is summed with.

Letters: N rows, D features.
"""

import functools

import torch
from torch import Tensor

SIZE = 16

# Fixed signs: NVIDIA 2025, arXiv:2509.25149, section 4.2, found one random vector for the whole of training enough.
_SIGNS = (1, 1, -1, 1, -1, -1, -1, 1, 1, -1, 1, 1, -1, 1, -1, -1)


def rotate_rows(x_ND: Tensor) -> Tensor:
    """Returns every 16 rows multiplied by the same orthogonal matrix, float32; N must be a multiple of 16.

    The product x^T g of two matrices so rotated is that of the matrices themselves, but for rounding.
    """
    rows = x_ND.unflatten(0, (-1, SIZE))
    return torch.matmul(_rotation(x_ND.device), rows).flatten(0, 1)


@functools.cache
def _rotation(device: torch.device) -> Tensor:
    """Returns Sylvester's Hadamard matrix over 4, its columns times the signs."""
    matrix = torch.ones(1, 1)
    while len(matrix) < SIZE:
        matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
    return (matrix * torch.tensor(_SIGNS) / SIZE**0.5).to(device)
