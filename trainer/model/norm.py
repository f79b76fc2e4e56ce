"""Root mean square normalisation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x**2) + eps) * gain over the last dimension, computed in float32 at least, also under autocast.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4, with eps inside the root.
    """

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised `x` in its own dtype."""
        return F.rms_norm(x.to(self.gain.dtype), self.gain.shape, self.gain, self.eps).to(x.dtype)
