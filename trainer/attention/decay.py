"""How fast a linear attention forgets, made from its input.

Letters: B sequences, L positions, H heads, d features of a head that forget on their own.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Decay(nn.Module):
    """log a = -exp(log_rate) * softplus(x + bias), computed in float32 at least: one rate per head, a bias per feature.

    Source: Gu and Dao 2023 (Mamba), arXiv:2312.00752, section 3.5 and its initialisation; used by gated DeltaNet
    (arXiv:2412.06464) and Kimi delta attention (arXiv:2510.26692).
    """

    def __init__(self, num_heads: int, num_features: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.log_rate_H = nn.Parameter(torch.zeros(num_heads))
        self.bias = nn.Parameter(torch.zeros(num_heads * num_features))

    def forward(self, x_BLE: Tensor) -> Tensor:
        """Returns log_decay_BLHd, at most 0, for an input of H * d features."""
        steps_BLE = F.softplus(x_BLE.to(self.bias.dtype) + self.bias)
        return -self.log_rate_H.exp().unsqueeze(-1) * steps_BLE.unflatten(-1, (self.num_heads, -1))

    def start(self, name: str, generator: torch.Generator) -> Tensor:
        """Returns the initial value of one of its parameters.

        Rates uniform in [1, 16], softplus(bias) log-uniform in [0.001, 0.1]: half-lives from half a position to 700.
        """
        drawn = torch.rand(self.get_parameter(name).shape, generator=generator)
        if name == "log_rate_H":
            return (1 + 15 * drawn).log()
        steps = (math.log(1e-3) + drawn * (math.log(1e-1) - math.log(1e-3))).exp()
        return steps + (-torch.expm1(-steps)).log()  # the inverse of softplus
