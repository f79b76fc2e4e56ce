"""The experts as three jagged matmuls (`grouped_mm`): no loop over experts, no host synchronisation."""

import torch
import torch.nn.functional as F
from torch import Tensor

_ALIGNMENT_BYTES = 16  # grouped_mm refuses strides that are no multiple of it, on CPU as on CUDA


def grouped_swiglu_torch(
    x_ND: Tensor, gate_weight_EDF: Tensor, up_weight_EDF: Tensor, down_weight_EFD: Tensor, offsets_E: Tensor
) -> Tensor:
    """Returns y_ND, for float32, bfloat16 and float16."""
    x_ND = x_ND.contiguous()
    gate_NF = F.grouped_mm(x_ND, gate_weight_EDF, offs=offsets_E)
    up_NF = F.grouped_mm(x_ND, up_weight_EDF, offs=offsets_E)
    y_ND = F.grouped_mm(F.silu(gate_NF) * up_NF, down_weight_EFD, offs=offsets_E)
    if y_ND.requires_grad:
        # The backward of grouped_mm refuses an expanded gradient (stride 0), which y_ND.sum().backward() would hand it.
        y_ND.register_hook(torch.Tensor.contiguous)
    return y_ND


def refuse_misaligned(gate_weight_EDF: Tensor) -> str | None:
    """Returns why `grouped_mm` cannot take matrices of these widths, or None."""
    _, dim, hidden_dim = gate_weight_EDF.shape
    unit = _ALIGNMENT_BYTES // gate_weight_EDF.dtype.itemsize
    if dim % unit or hidden_dim % unit:
        return f"dim={dim} and hidden_dim={hidden_dim} must be multiples of {unit} for {gate_weight_EDF.dtype}"
    return None
