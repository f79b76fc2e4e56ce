"""Casting a tensor to a narrow format: blocks, one scale each, elements on the format's grid.

Letters: R rows and C columns of the last two dimensions; a leading dimension, if any, counts matrices.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.quantize.number_format import NumberFormat, round_to
from kernels.quantize.scaling import ScaleRule, block_scales

# Scales are rounded numbers themselves: an element that misses the largest number by their last bits is not clipped.
_SCALE_ROUNDING = 1.0 + 2.0**-20

COUNT_NAMES = ("nonzero", "zeroed", "saturated")
"""What is counted of a cast: elements that are not zero; those of them that became zero; those that were clipped."""


@dataclass(frozen=True, kw_only=True)
class Cast:
    """How one operand of a matmul is cast.

    Attributes:
        number_format: of the elements.
        rule: of the scales.
        block_size: elements along the contracted dimension that share a scale; None for the whole matrix.
        square: whether a block is as high as it is long: then a matrix and its transpose have the same values.
        stochastic: how to round.
    """

    number_format: NumberFormat
    rule: ScaleRule
    block_size: int | None
    square: bool = False
    stochastic: bool = False


class Quantized(NamedTuple):
    """A cast tensor: elements times scales are its values.

    elements_RC: float32, numbers of the format.
    scales: float32, (..., blocks down, 1, blocks across, 1).
    block_shape: rows and columns of a block.
    """

    elements_RC: Tensor
    scales: Tensor
    block_shape: tuple[int, int]

    def values(self) -> Tensor:
        """Returns values_RC, float32."""
        return (_in_blocks(self.elements_RC, self.block_shape) * self.scales).flatten(-2).flatten(-3, -2)


def quantize(x_RC: Tensor, cast: Cast, *, contracts: int, counts: Tensor | None = None) -> Quantized:
    """Returns x_RC cast to the format.

    Args:
        x_RC: float32, (R, C) or (matrices, R, C).
        cast: how.
        contracts: the dimension a matmul sums over, -1 or -2; blocks lie along it and must divide it.
        counts: int64 [3], increased by this cast's `COUNT_NAMES`; None does not count.
    """
    block_shape = _block_shape(x_RC, cast, contracts)
    blocks = _in_blocks(x_RC, block_shape)
    magnitudes = blocks.abs()
    if cast.square:  # both dimensions at once takes a CPU five times as long
        magnitudes = magnitudes.amax(dim=-3, keepdim=True)
    scales = block_scales(magnitudes.amax(dim=(-3, -1), keepdim=True), cast.number_format, cast.rule)
    # Blocks whose scale was rounded to zero hold zeros; and no reciprocals, which overflow where scales are subnormal.
    scaled = blocks / torch.where(scales == 0, torch.inf, scales)
    elements = round_to(scaled, cast.number_format, stochastic=cast.stochastic)
    if counts is not None:
        nonzero = torch.count_nonzero(x_RC)
        zeroed = nonzero - torch.count_nonzero(elements)
        # A float32 scale leaves nothing to clip.
        clips = cast.rule != "float32"
        limit = cast.number_format.largest * _SCALE_ROUNDING
        saturated = torch.count_nonzero(scaled.abs_() > limit) if clips else torch.zeros_like(nonzero)
        counts += torch.stack([nonzero, zeroed, saturated])
    return Quantized(elements.flatten(-2).flatten(-3, -2), scales, block_shape)


def _block_shape(x_RC: Tensor, cast: Cast, contracts: int) -> tuple[int, int]:
    if cast.block_size is None:
        return x_RC.shape[-2], x_RC.shape[-1]
    across = cast.block_size if cast.square else 1
    return (across, cast.block_size) if contracts == -1 else (cast.block_size, across)


def _in_blocks(x_RC: Tensor, block_shape: tuple[int, int]) -> Tensor:
    """Returns the view (..., blocks down, rows of a block, blocks across, columns of a block)."""
    height, width = block_shape
    return x_RC.unflatten(-1, (-1, width)).unflatten(-3, (-1, height))
