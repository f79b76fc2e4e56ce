"""A causal convolution over the last few positions, each feature for itself.

Letters: B sequences, L positions, C features, W positions the convolution sees.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ShortConvolution(nn.Module):
    """silu(sum_w weight[:, w] * x[l - W + 1 + w]), positions before the first being zero.

    Sources: as linear attention uses it since Mamba, arXiv:2312.00752; arXiv:2412.06464, section 3.4.
    """

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.weight_C1W = nn.Parameter(torch.empty(num_features, 1, width))

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Returns the output in the shape of the input."""
        width = self.weight_C1W.shape[-1]
        x_BCL = F.pad(x_BLC.transpose(1, 2), (width - 1, 0))
        return F.silu(F.conv1d(x_BCL, self.weight_C1W, groups=x_BLC.shape[-1]).transpose(1, 2))

    def start(self, generator: torch.Generator) -> Tensor:
        """Returns the initial weight: uniform in +-1/sqrt(W), as torch starts a convolution."""
        bound = self.weight_C1W.shape[-1] ** -0.5
        return (2 * torch.rand(self.weight_C1W.shape, generator=generator) - 1) * bound
