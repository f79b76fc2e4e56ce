"""What multiplies the experts' rows with their matrices.

Letters: N rows in expert order, D and F input and output features, E experts.
"""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class GroupedMatmul(Protocol):
    """Multiplies rows with stacked weights."""

    def __call__(self, x_ND: Tensor, weight_EDF: Tensor, offsets_E: Tensor) -> Tensor:
        """Returns each expert's rows times its matrix, [N, F]; differentiable."""
        ...


def grouped_matmul(x_ND: Tensor, weight_EDF: Tensor, offsets_E: Tensor) -> Tensor:
    """Returns the product by `grouped_mm`, in the dtype of the operands."""
    return F.grouped_mm(x_ND, weight_EDF, offs=offsets_E)
