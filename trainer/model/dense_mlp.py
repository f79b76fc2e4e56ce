"""The dense feed-forward network.

Letters: D model dim, F hidden dim.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn


class DenseMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), without biases.

    Source: Shazeer 2020, arXiv:2002.05202, eq. 6.
    """

    residual_weights: ClassVar[tuple[str, ...]] = ("down.weight",)

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=False)
        self.up = nn.Linear(dim, hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output for `x` of shape (..., D), in the same shape."""
        return self.down(F.silu(self.gate(x)) * self.up(x))
