"""How gate and up projection of a gated MLP become its hidden features."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Literal["swiglu", "geglu", "clamped_swiglu"]

_CLAMP = 7.0
_SIGMOID_SLOPE = 1.702  # makes x * sigmoid(1.702 x) the sigmoid approximation of GELU


def gated_activation(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """Returns the hidden features of a gated MLP, in the shape and dtype of both projections.

    - swiglu: silu(gate) * up. Source: Shazeer 2020, arXiv:2002.05202, eq. 6.
    - geglu: gelu(gate) * up with the tanh approximation, as in T5 1.1. Source: the same, eq. 6.
    - clamped_swiglu: g * sigmoid(1.702 g) * (u + 1) with g = min(gate, 7) and u = up within [-7, 7].
      Source: OpenAI 2025 (gpt-oss), arXiv:2508.10925, section 2.3, and the released implementation.
    """
    if activation == "swiglu":
        return F.silu(gate) * up
    if activation == "geglu":
        return F.gelu(gate, approximate="tanh") * up
    if activation == "clamped_swiglu":
        gate = gate.clamp(max=_CLAMP)
        return (gate * torch.sigmoid(_SIGMOID_SLOPE * gate)) * (up.clamp(-_CLAMP, _CLAMP) + 1.0)
    raise ValueError(f"there is no activation {activation!r}; there are: swiglu, geglu, clamped_swiglu")
