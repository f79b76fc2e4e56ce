"""Recipes to test, and what a quantised matmul has to compute, expert by expert."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.quantize import Recipe, fp8_block, fp8_tensor, mxfp8, nvfp4, quantize
from kernels.quantize.hadamard import rotate_rows

RECIPES: dict[str, Recipe] = {
    "fp8_tensor": fp8_tensor(gradient_format="e4m3"),
    "fp8_tensor_e5m2": fp8_tensor(gradient_format="e5m2"),
    "fp8_block": fp8_block(gradient_format="e4m3"),
    "mxfp8": mxfp8(scale_rounding="floor"),
    "mxfp8_up": mxfp8(scale_rounding="up"),
    "nvfp4": nvfp4(stochastic_gradients=True, square_weights=True, hadamard=True),
    "nvfp4_plain": nvfp4(stochastic_gradients=False, square_weights=False, hadamard=False),
}
"""Every recipe and every option of one, by a name for test ids."""


class Operands(NamedTuple):
    """Of one matmul: input, weight, gradient of the output, and how many rows each expert has."""

    x_ND: Tensor
    weight_EDF: Tensor
    gradient_NF: Tensor
    counts: tuple[int, ...]

    @property
    def offsets_E(self) -> Tensor:
        return torch.tensor(self.counts).cumsum(0).int()


def operands(counts: tuple[int, ...], *, dim: int = 128, outputs: int = 128, unowned: int = 0) -> Operands:
    """Returns normal operands; `unowned` rows of NaN lie behind those of the experts."""
    generator = torch.Generator().manual_seed(0)
    num_rows = sum(counts)
    x_ND = torch.randn(num_rows, dim, generator=generator)
    weight_EDF = torch.randn(len(counts), dim, outputs, generator=generator) / dim**0.5
    gradient_NF = torch.randn(num_rows, outputs, generator=generator) * 1e-4
    nans = torch.full((unowned, max(dim, outputs)), torch.nan)
    return Operands(
        torch.cat([x_ND, nans[:, :dim]]).requires_grad_(),
        weight_EDF.requires_grad_(),
        torch.cat([gradient_NF, nans[:, :outputs]]),
        counts,
    )


def expected_matmul(given: Operands, recipe: Recipe) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y_ND, and the gradients of input and weight: casts of whole tensors, products one expert after the other.

    Rows that are summed over are filled up with zeros to whole blocks, each expert's by itself. Of a recipe with
    stochastic rounding it takes the casts of the gradient in the order of `kernels.quantize.matmul`.
    """
    counts = list(given.counts)
    num_rows = sum(counts)
    x_ND, gradient_NF, weight_EDF = given.x_ND.detach()[:num_rows], given.gradient_NF[:num_rows], given.weight_EDF
    forward_EDF = quantize(weight_EDF.detach(), recipe.weight, contracts=-2).values()
    backward_EFD = quantize(weight_EDF.detach().mT.contiguous(), recipe.weight, contracts=-2).values()
    by_row = _products(quantize(x_ND, recipe.activation, contracts=-1).values().split(counts), forward_EDF)
    dx_ND = _products(quantize(gradient_NF, recipe.gradient, contracts=-1).values().split(counts), backward_EFD)
    filled_counts = [-(-count // recipe.row_multiple) * recipe.row_multiple for count in counts]
    x_PD, gradient_PF = _filled(x_ND, counts, recipe), _filled(gradient_NF, counts, recipe)
    x_groups = quantize(x_PD, recipe.activation, contracts=-2).values().split(filled_counts)
    gradient_groups = quantize(gradient_PF, recipe.gradient, contracts=-2).values().split(filled_counts)
    dweight_EDF = torch.stack([x_D.T @ gradient for x_D, gradient in zip(x_groups, gradient_groups, strict=True)])
    return by_row, dx_ND, dweight_EDF


def _products(groups: Sequence[Tensor], matrices: Tensor) -> Tensor:
    return torch.cat([rows @ matrix for rows, matrix in zip(groups, matrices, strict=True)])


def _filled(x_ND: Tensor, counts: Sequence[int], recipe: Recipe) -> Tensor:
    filled = [F.pad(rows, (0, 0, 0, -len(rows) % recipe.row_multiple)) for rows in x_ND.split(list(counts))]
    return rotate_rows(torch.cat(filled)) if recipe.hadamard else torch.cat(filled)
