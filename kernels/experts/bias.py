"""Biases of the experts, one row each, added to rows in expert order.

Letters: N rows, D model dim, F expert hidden dim (of any features in `add_expert_bias`), E experts.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_NUM_ONES = 8  # grouped_mm wants strides of whole 16 bytes: 8 values, in bfloat16 as in float32


class ExpertBiases(NamedTuple):
    """The biases of the three projections.

    gate_EF, up_EF: added before the activation.
    down_ED: added to the result.
    """

    gate_EF: Tensor
    up_EF: Tensor
    down_ED: Tensor


def add_expert_bias(y_NF: Tensor, bias_EF: Tensor, offsets_E: Tensor) -> Tensor:
    """Returns y_NF with expert e's bias on its rows offsets_E[e-1] to offsets_E[e]; rows owned by none are arbitrary.

    The gradient of the bias sums the expert's rows by `grouped_mm` with a matrix of ones: always in the same order,
    where the scatter-add that autograd would use has none on a GPU, and without a number for the host to wait for.
    """
    return _AddExpertBias.apply(y_NF, bias_EF, offsets_E)


class _AddExpertBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_NF: Tensor, bias_EF: Tensor, offsets_E: Tensor) -> Tensor:
        ctx.save_for_backward(offsets_E)
        rows_N = torch.arange(y_NF.shape[0], device=y_NF.device, dtype=offsets_E.dtype)
        expert_N = torch.bucketize(rows_N, offsets_E, right=True).clamp_(max=bias_EF.shape[0] - 1)
        return y_NF + bias_EF.index_select(0, expert_N)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (dy_NF,) = grad_outputs
        (offsets_E,) = ctx.saved_tensors
        ones_NM = dy_NF.new_ones(dy_NF.shape[0], _NUM_ONES)
        sums_EMF = F.grouped_mm(ones_NM.t(), dy_NF.contiguous(), offs=offsets_E)
        return dy_NF, sums_EMF[:, 0], None
