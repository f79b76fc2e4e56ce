"""What multiplies the experts' rows with their matrices.

Letters: N rows in expert order, D and F input and output features, E experts.
"""

from collections.abc import Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class GroupedMatmul(Protocol):
    """Multiplies one input with several stacked weights (gate and up projection share theirs)."""

    def __call__(self, x_ND: Tensor, weights: Sequence[Tensor], offsets_E: Tensor) -> tuple[Tensor, ...]:
        """Returns, for each of the weights [E, D, F], each expert's rows times its matrix, [N, F]; differentiable."""
        ...


def grouped_matmul(x_ND: Tensor, weights: Sequence[Tensor], offsets_E: Tensor) -> tuple[Tensor, ...]:
    """Returns the products by `grouped_mm`, in the dtype of the operands."""
    return tuple(F.grouped_mm(x_ND, weight_EDF, offs=offsets_E) for weight_EDF in weights)
