"""A causal convolution over the last few positions, each feature for itself.

Letters: B sequences, L positions, C features, W positions the convolution sees.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.attention.documents import Documents


class ShortConvolution(nn.Module):
    """silu(sum_w weight[:, w] * x[l - W + 1 + w]), positions before the first of a document being zero.

    Sources: as linear attention uses it since Mamba, arXiv:2312.00752; arXiv:2412.06464, section 3.4.
    """

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.weight_C1W = nn.Parameter(torch.empty(num_features, 1, width))

    def forward(self, x_BLC: Tensor, documents: Documents | None = None) -> Tensor:
        """Returns the output in the shape of the input."""
        width = self.weight_C1W.shape[-1]
        if documents is not None:
            return F.silu(self._within(x_BLC, documents))
        x_BCL = F.pad(x_BLC.transpose(1, 2), (width - 1, 0))
        return F.silu(F.conv1d(x_BCL, self.weight_C1W, groups=x_BLC.shape[-1]).transpose(1, 2))

    def decode(self, x_BC: Tensor, before_BVC: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns out_BC of the next position and the last V = W - 1 positions of the input; None for zeros."""
        weight_WC = self.weight_C1W[:, 0].t()
        if before_BVC is None:
            before_BVC = x_BC.new_zeros(len(x_BC), len(weight_WC) - 1, x_BC.shape[-1])
        seen_BWC = torch.cat([before_BVC, x_BC.unsqueeze(1)], dim=1)
        return F.silu((seen_BWC * weight_WC.to(x_BC.dtype)).sum(1)), seen_BWC[:, 1:]

    def _within(self, x_BLC: Tensor, documents: Documents) -> Tensor:
        """Returns the sums position by position back, each cleared where it lies in an earlier document."""
        weight_WC = self.weight_C1W[:, 0].t().to(x_BLC.dtype)
        total_BLC = x_BLC * weight_WC[-1]
        for distance in range(1, min(len(weight_WC), x_BLC.shape[1])):
            is_inside_BL1 = (documents.place_BL[:, distance:] >= distance).unsqueeze(-1)
            back_BLC = x_BLC[:, :-distance] * weight_WC[-1 - distance] * is_inside_BL1
            total_BLC = total_BLC + F.pad(back_BLC, (0, 0, distance, 0))
        return total_BLC

    def start(self, generator: torch.Generator) -> Tensor:
        """Returns the initial weight: uniform in +-1/sqrt(W), as torch starts a convolution."""
        bound = self.weight_C1W.shape[-1] ** -0.5
        return (2 * torch.rand(self.weight_C1W.shape, generator=generator) - 1) * bound
