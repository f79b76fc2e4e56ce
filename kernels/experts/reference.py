"""The experts one after the other: reads the offsets on the host, works in any dtype, and defines what is correct."""

import torch
from torch import Tensor

from kernels.experts.activation import Activation, gated_activation
from kernels.experts.bias import ExpertBiases


def grouped_swiglu_reference(
    x_ND: Tensor,
    gate_up_weight_E2FD: Tensor,
    down_weight_EFD: Tensor,
    offsets_E: Tensor,
    *,
    activation: Activation = "swiglu",
    biases: ExpertBiases | None = None,
) -> Tensor:
    """Returns y_ND, NaN in the rows that no expert owns; raises ValueError when the offsets fall or end behind them."""
    ends = offsets_E.tolist()
    if ends != sorted(ends) or ends[0] < 0 or ends[-1] > x_ND.shape[0]:
        raise ValueError(f"offsets_E={ends} must rise from 0 and end within the number of rows, {x_ND.shape[0]}")
    outputs = []
    for expert, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        x_MD = x_ND[start:end]
        gate_MF, up_MF = (x_MD @ weight_FD.t() for weight_FD in gate_up_weight_E2FD[expert])
        if biases is not None:
            gate_MF, up_MF = gate_MF + biases.gate_EF[expert], up_MF + biases.up_EF[expert]
        y_MD = gated_activation(gate_MF, up_MF, activation) @ down_weight_EFD[expert]
        outputs.append(y_MD if biases is None else y_MD + biases.down_ED[expert])
    unowned = x_ND.new_full((x_ND.shape[0] - ends[-1], down_weight_EFD.shape[2]), float("nan"))
    return torch.cat((*outputs, unowned))
