"""How gate and up projection of a gated MLP become its hidden features.

Letters: N rows, F hidden features, G = 2F of gate and up projection beside each other.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Activation = Literal["swiglu", "geglu", "clamped_swiglu"]

_CLAMP = 7.0
_CPU_FEATURES = 2**17  # 512 KiB of each tensor stay in a core's cache from one operation to the next
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


def gated_features_(gate_up_NG: Tensor, activation: Activation) -> Tensor:
    """Returns `gated_activation` of the first F and the other F columns, [N, F].

    The input is used up: with swiglu the backward pass writes its gradient over it. It must be nobody else's (the
    result of a matmul, which does not keep it), and a second backward pass through it is an error of autograd's.
    """
    if activation == "swiglu":
        return _SwiGLU.apply(gate_up_NG)
    gate_NF, up_NF = gate_up_NG.chunk(2, dim=1)
    return gated_activation(gate_NF, up_NF, activation)


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up, keeping its input alone, over which it writes both gradients.

    On a CPU it goes through the rows in pieces that fit a core's cache. In place is what counts there: two thirds of
    the time of a backward pass into new memory, which has to be read before it can be written.
    """

    @staticmethod
    def forward(ctx: Any, gate_up_NG: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_NG)
        gate_NF, up_NF = gate_up_NG.chunk(2, dim=1)
        hidden_NF = torch.empty_like(gate_NF, memory_format=torch.contiguous_format)
        num_rows = _rows_at_a_time(hidden_NF)
        for gate, up, hidden in zip(*(each.split(num_rows) for each in (gate_NF, up_NF, hidden_NF)), strict=True):
            torch.ops.aten.silu.out(gate, out=hidden)
            hidden.mul_(up)
        return hidden_NF

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # autograd gives the wrapper ctx by position
        ctx: Any, *grad_outputs: Tensor
    ) -> Tensor:
        # d up = dh silu(gate), d gate = (dh up) silu'(gate)
        (dhidden_NF,) = grad_outputs
        (gate_up_NG,) = ctx.saved_tensors
        num_rows = _rows_at_a_time(dhidden_NF)
        tensors = (*gate_up_NG.chunk(2, dim=1), dhidden_NF)
        scratch = torch.empty_like(dhidden_NF[:num_rows])
        for gate, up, dhidden in zip(*(each.split(num_rows) for each in tensors), strict=True):
            dsilu = torch.mul(dhidden, up, out=scratch[: len(dhidden)])
            torch.ops.aten.silu.out(gate, out=up).mul_(dhidden)
            torch.ops.aten.silu_backward.grad_input(dsilu, gate, grad_input=gate)
        return gate_up_NG


def _rows_at_a_time(features_NF: Tensor) -> int:
    num_rows, width = features_NF.shape
    return max(1, _CPU_FEATURES // width if features_NF.device.type == "cpu" else num_rows)
