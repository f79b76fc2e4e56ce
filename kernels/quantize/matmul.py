"""The experts' matmuls in a narrow format, forward and backward.

Letters: N rows in expert order, P rows with room between experts, D and F input and output features, E experts.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.quantize.cast import COUNT_NAMES, Cast, Quantized, quantize
from kernels.quantize.device import ScaledGroupedMM
from kernels.quantize.hadamard import rotate_rows
from kernels.quantize.recipe import Recipe
from kernels.quantize.row_groups import mask_unowned, spread_groups

OPERAND_NAMES = ("activation", "weight", "gradient")
"""Which casts are counted apart."""


class GroupedMultiply(Protocol):
    """Multiplies cast operands, per expert."""

    row_multiple: int
    """What the rows of an expert must be a multiple of when rows are summed over."""

    def rows(self, x_NC: Quantized, weight_ECF: Quantized, offsets_E: Tensor) -> Tensor:
        """Returns the product of each expert's rows with its matrix, summed over C; float32 or bfloat16 [N, F]."""
        ...

    def columns(self, x_PD: Quantized, gradient_PF: Quantized, offsets_E: Tensor) -> Tensor:
        """Returns x^T gradient of each expert, summed over its rows; float32 or bfloat16 [E, D, F]."""
        ...


class Emulated:
    """Multiplies the values themselves, adding up in float32: what hardware does, on hardware that does not."""

    row_multiple = 1

    def rows(self, x_NC: Quantized, weight_ECF: Quantized, offsets_E: Tensor) -> Tensor:
        """Returns float32 [N, F]."""
        return F.grouped_mm(x_NC.values(), weight_ECF.values(), offs=offsets_E)

    def columns(self, x_PD: Quantized, gradient_PF: Quantized, offsets_E: Tensor) -> Tensor:
        """Returns float32 [E, D, F]."""
        return F.grouped_mm(x_PD.values().T, gradient_PF.values(), offs=offsets_E)


class QuantizedMatmul:
    """Matmuls of one layer's experts after a recipe; `kernels.grouped_swiglu` takes it as `matmul`.

    Every matmul casts its operands anew from the tensors as they are: nothing narrow outlives it, and the backward pass
    keeps what an unquantised matmul keeps. Counts of what the casts lose add up on the device until they are taken.

    Args:
        recipe: which casts.
        device: of the operands.

    Attributes:
        is_emulated: False where the device multiplies in the format itself.
    """

    def __init__(self, recipe: Recipe, *, device: torch.device) -> None:
        real = ScaledGroupedMM.for_device(recipe, device)
        self.is_emulated = real is None
        self._recipe = recipe
        self._multiply: GroupedMultiply = real or Emulated()
        self._counts_OC = torch.zeros(len(OPERAND_NAMES), len(COUNT_NAMES), dtype=torch.int64, device=device)

    def __call__(self, x_ND: Tensor, weight_EDF: Tensor, offsets_E: Tensor) -> Tensor:
        """Returns each expert's rows times its matrix, (rows, F) in the dtype of `x_ND`.

        Args:
            x_ND: rows in expert order; those beyond the last offset are not read, and are zeros in the result.
            weight_EDF: float32.
            offsets_E: int32 ends of the experts' rows.
        """
        # An evaluation casts too, and is no part of what a step loses.
        counts_OC = self._counts_OC if torch.is_grad_enabled() else None
        return _Matmul.apply(self._recipe, self._multiply, counts_OC, offsets_E, x_ND, weight_EDF)

    def take_counts(self) -> Tensor:
        """Returns the counts since the last call, int64 [operand, count] (`OPERAND_NAMES`, `COUNT_NAMES`)."""
        taken_OC = self._counts_OC.clone()
        self._counts_OC.zero_()
        return taken_OC


class _Matmul(torch.autograd.Function):
    """Gradients pass the casts as if they rounded nothing."""

    @staticmethod
    def forward(
        ctx: Any,
        recipe: Recipe,
        multiply: GroupedMultiply,
        counts_OC: Tensor | None,
        offsets_E: Tensor,
        x_ND: Tensor,
        weight_EDF: Tensor,
    ) -> Tensor:
        ctx.recipe, ctx.multiply, ctx.counts_OC = recipe, multiply, counts_OC
        ctx.save_for_backward(offsets_E, x_ND, weight_EDF)
        cast = _Casts(recipe, counts_OC)
        quantized_x = cast.activation(mask_unowned(x_ND.float(), offsets_E), contracts=-1)
        quantized_weight = cast.weight(weight_EDF.float(), contracts=-2)
        return _owned(multiply.rows(quantized_x, quantized_weight, offsets_E), offsets_E, x_ND)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # autograd gives the wrapper ctx by position
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        offsets_E, x_ND, weight_EDF = ctx.saved_tensors
        recipe, multiply = ctx.recipe, ctx.multiply
        cast = _Casts(recipe, ctx.counts_OC)
        (gradient_NF,) = gradients
        gradient_NF = mask_unowned(gradient_NF.float(), offsets_E)
        *_, x_needs_it, weight_needs_it = ctx.needs_input_grad
        dx_ND = dweight_EDF = None
        if x_needs_it:
            quantized_gradient = cast.gradient(gradient_NF, contracts=-1)
            quantized_weight = cast.weight(weight_EDF.float().transpose(-2, -1), contracts=-2)
            dx_ND = _owned(multiply.rows(quantized_gradient, quantized_weight, offsets_E), offsets_E, x_ND)
        if weight_needs_it:
            multiple = max(recipe.row_multiple, multiply.row_multiple)
            x_PD, ends_E = _summed_over(mask_unowned(x_ND.float(), offsets_E), offsets_E, recipe, multiple)
            gradient_PF, _ = _summed_over(gradient_NF, offsets_E, recipe, multiple)
            quantized_x = cast.activation(x_PD, contracts=-2)
            quantized_gradient = cast.gradient(gradient_PF, contracts=-2)
            dweight_EDF = multiply.columns(quantized_x, quantized_gradient, ends_E).to(weight_EDF.dtype)
        return None, None, None, None, dx_ND, dweight_EDF


class _Casts:
    """The casts of a recipe, counted."""

    def __init__(self, recipe: Recipe, counts_OC: Tensor | None) -> None:
        self._recipe = recipe
        self._counts = (None, None, None) if counts_OC is None else counts_OC.unbind()

    def activation(self, x_RC: Tensor, *, contracts: int) -> Quantized:
        return self._cast(x_RC, self._recipe.activation, 0, contracts)

    def weight(self, x_RC: Tensor, *, contracts: int) -> Quantized:
        return self._cast(x_RC, self._recipe.weight, 1, contracts)

    def gradient(self, x_RC: Tensor, *, contracts: int) -> Quantized:
        return self._cast(x_RC, self._recipe.gradient, 2, contracts)

    def _cast(self, x_RC: Tensor, cast: Cast, operand: int, contracts: int) -> Quantized:
        return quantize(x_RC, cast, contracts=contracts, counts=self._counts[operand])


def _summed_over(x_ND: Tensor, offsets_E: Tensor, recipe: Recipe, multiple: int) -> tuple[Tensor, Tensor]:
    """Returns rows that a matmul may sum over in blocks, and their experts' ends."""
    x_PD, ends_E = spread_groups(x_ND, offsets_E, multiple=multiple)
    return (rotate_rows(x_PD) if recipe.hadamard else x_PD), ends_E


def _owned(y_NF: Tensor, offsets_E: Tensor, like: Tensor) -> Tensor:
    """Returns y_NF with zeros where a grouped matmul writes nothing, in the dtype of the layer's activations."""
    return mask_unowned(y_NF, offsets_E).to(like.dtype)
