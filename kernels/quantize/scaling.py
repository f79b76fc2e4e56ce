"""How large a block's scale is: the number its rounded elements are multiplied by to give its values back."""

import math
from typing import Literal

import torch
from torch import Tensor

from kernels.quantize.number_format import E4M3, NumberFormat, round_to

ScaleRule = Literal["float32", "e8m0_floor", "e8m0_up", "two_level"]
"""`float32`: the block's largest magnitude becomes the format's largest number.
`e8m0_floor`, `e8m0_up`: a power of two. `two_level`: an e4m3 number times one float32 per matrix (NVFP4)."""

_E8M0_LARGEST_EXPONENT = 127


def block_scales(largest: Tensor, number_format: NumberFormat, rule: ScaleRule) -> Tensor:
    """Returns the scale of each block, float32, shape of `largest`.

    A block of zeros has scale 1, or under `e8m0` the smallest there is; one with a NaN or an infinity has scale NaN
    under `e8m0`, as the specification asks.

    Args:
        largest: float32, largest magnitude of each block; the blocks of one matrix along the last four dimensions
            (`kernels.quantize.cast.quantize`).
        number_format: of the elements.
        rule: see `ScaleRule`.
    """
    if rule == "float32":
        return torch.where(largest == 0, 1.0, largest / number_format.largest)
    if rule == "two_level":
        return _two_level_scales(largest, number_format)
    return _power_of_two_scales(largest, number_format, up=rule == "e8m0_up")


def _power_of_two_scales(largest: Tensor, number_format: NumberFormat, *, up: bool) -> Tensor:
    """Down: 2 ** (floor(log2 largest) - floor(log2 format's largest)), OCP MX v1.0, section 6.3: what lies above the
    format's largest number afterwards is clipped. Up: the smallest power of two that clips nothing, Mishra et al. 2025,
    arXiv:2506.08027, section 3.1."""
    if up:
        mantissa, exponent = torch.frexp(largest / number_format.largest)  # mantissa in [0.5, 1)
        exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    else:
        # Both exponents are one more than the floor of the logarithm: the mantissas are in [0.5, 1).
        exponent = torch.frexp(largest).exponent - math.frexp(number_format.largest)[1]
    exponent = exponent.clamp(-_E8M0_LARGEST_EXPONENT, _E8M0_LARGEST_EXPONENT)
    scales = torch.ldexp(torch.ones_like(largest), torch.where(largest == 0, -_E8M0_LARGEST_EXPONENT, exponent))
    return torch.where(largest.isfinite(), scales, torch.nan)


def _two_level_scales(largest: Tensor, number_format: NumberFormat) -> Tensor:
    """The matrix's scale brings its largest block scale to the largest e4m3 number. A block scale below half the
    smallest one becomes 0, and its elements with it. Source: NVIDIA 2025, arXiv:2509.25149, on conversion to NVFP4."""
    matrix_largest = largest.amax(dim=(-4, -2), keepdim=True)
    encode = torch.where(matrix_largest == 0, 1.0, number_format.largest * E4M3.largest / matrix_largest)
    encode = encode.clamp_(max=torch.finfo(torch.float32).max)  # a matrix of subnormals
    return round_to(largest / number_format.largest * encode, E4M3) / encode
