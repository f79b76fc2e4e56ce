"""Root mean square normalisation."""

from typing import Any

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
        wide = x.to(self.gain.dtype)
        if wide.device.type == "cpu":
            return _RMSNorm.apply(wide, self.gain, self.eps).to(x.dtype)
        return F.rms_norm(wide, self.gain.shape, self.gain, self.eps).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """torch fuses the norm on CUDA only; on a CPU this takes 0.85 ms forward and backward where the composite of
    `F.rms_norm` takes 1.57 ms (2048 rows of 128), and keeps one tensor of the input's size instead of two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse_rms = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normalised = x * inverse_rms
        ctx.save_for_backward(normalised, inverse_rms, gain)
        return normalised * gain

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        # With n = x/rms and dn = dy * gain: dx = (dn - n * mean(dn * n)) / rms, and mean(dn * n) = (dy * n) @ gain / D.
        (dy,) = grad_outputs
        normalised, inverse_rms, gain = ctx.saved_tensors
        dy_n = dy * normalised
        dgain = dy_n.flatten(0, -2).sum(0)
        projection = (dy_n @ gain).unsqueeze(-1).div_(-gain.shape[0])
        return (dy * gain).addcmul_(normalised, projection).mul_(inverse_rms), dgain, None
