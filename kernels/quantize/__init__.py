"""Matmuls of the experts in 8 and 4 bits: on the device where it can, else the same numbers in float32.

    matmul = QuantizedMatmul(mxfp8(scale_rounding="floor"), device=x_ND.device)
    y_ND = grouped_swiglu(x_ND, gate_EDF, up_EDF, down_EFD, routing.offsets_E, matmul=matmul)

The emulation casts each operand to the very numbers of the format and multiplies these in float32: a product of two of
them is exact there, and hardware adds up in float32 too, in another order.
"""

from kernels.quantize.cast import COUNT_NAMES, Cast, Quantized, quantize
from kernels.quantize.matmul import OPERAND_NAMES, QuantizedMatmul
from kernels.quantize.number_format import E2M1, E4M3, E5M2, NumberFormat, round_to
from kernels.quantize.recipe import Recipe, fp8_block, fp8_tensor, mxfp8, nvfp4

__all__ = [
    "COUNT_NAMES",
    "E2M1",
    "E4M3",
    "E5M2",
    "OPERAND_NAMES",
    "Cast",
    "NumberFormat",
    "Quantized",
    "QuantizedMatmul",
    "Recipe",
    "fp8_block",
    "fp8_tensor",
    "mxfp8",
    "nvfp4",
    "quantize",
    "round_to",
]
