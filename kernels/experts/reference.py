"""The experts one after the other: reads the offsets on the host, works in any dtype, and defines what is correct."""

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_swiglu_reference(
    x_ND: Tensor, gate_weight_EDF: Tensor, up_weight_EDF: Tensor, down_weight_EFD: Tensor, offsets_E: Tensor
) -> Tensor:
    """Returns y_ND; raises ValueError when the offsets fall or do not end at the number of rows."""
    ends = offsets_E.tolist()
    if ends != sorted(ends) or ends[0] < 0 or ends[-1] != x_ND.shape[0]:
        raise ValueError(f"offsets_E={ends} must rise from 0 and end at the number of rows, {x_ND.shape[0]}")
    outputs = []
    for expert, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        x_MD = x_ND[start:end]
        hidden_MF = F.silu(x_MD @ gate_weight_EDF[expert]) * (x_MD @ up_weight_EDF[expert])
        outputs.append(hidden_MF @ down_weight_EFD[expert])
    return torch.cat(outputs)
