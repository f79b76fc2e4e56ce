"""The experts as two jagged matmuls (`grouped_mm`): no loop over experts, no host synchronisation."""

import torch
from torch import Tensor

from kernels.experts.activation import Activation, gated_features_
from kernels.experts.bias import ExpertBiases, add_expert_bias
from kernels.experts.matmul import GroupedMatmul, grouped_matmul

_ALIGNMENT_BYTES = 16  # grouped_mm refuses strides that are no multiple of it, on CPU as on CUDA


def grouped_swiglu_torch(
    x_ND: Tensor,
    gate_up_weight_E2FD: Tensor,
    down_weight_EFD: Tensor,
    offsets_E: Tensor,
    *,
    activation: Activation = "swiglu",
    biases: ExpertBiases | None = None,
    matmul: GroupedMatmul | None = None,
) -> Tensor:
    """Returns y_ND, for float32, bfloat16 and float16."""
    multiply = matmul or grouped_matmul
    gate_up_NG = multiply(x_ND.contiguous(), gate_up_weight_E2FD.flatten(1, 2).transpose(1, 2), offsets_E)
    if biases is not None:
        gate_up_NG = add_expert_bias(gate_up_NG, torch.cat((biases.gate_EF, biases.up_EF), dim=1), offsets_E)
    y_ND = multiply(gated_features_(gate_up_NG, activation), down_weight_EFD, offsets_E)
    if y_ND.requires_grad:
        # The backward of grouped_mm refuses an expanded gradient (stride 0), which y_ND.sum().backward() would hand it.
        y_ND.register_hook(torch.Tensor.contiguous)
    return y_ND if biases is None else add_expert_bias(y_ND, biases.down_ED, offsets_E)


def refuse_misaligned(down_weight_EFD: Tensor) -> str | None:
    """Returns why `grouped_mm` cannot take matrices of these widths, or None."""
    _, hidden_dim, dim = down_weight_EFD.shape
    unit = _ALIGNMENT_BYTES // down_weight_EFD.dtype.itemsize
    if dim % unit or hidden_dim % unit:
        return f"dim={dim} and hidden_dim={hidden_dim} must be multiples of {unit} for {down_weight_EFD.dtype}"
    return None
