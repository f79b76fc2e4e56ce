"""The matmuls in the format itself, where torch and the device have them.

`torch.nn.functional.scaled_grouped_mm` of torch 2.13 has four recipes (aten/src/ATen/native/cuda/GroupedBlas.cpp): e4m3
with a float32 scale per row, on compute capability 9.x; MXFP8, MXFP4 and NVFP4 on 10.x, in builds with USE_MSLK. Used
here is the first: one scale per tensor is a scale per row, all the same. It has no e5m2 and no blocks of 128.

Letters: as in `kernels.quantize.matmul`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.quantize.cast import Quantized
from kernels.quantize.number_format import E4M3
from kernels.quantize.recipe import Recipe

_CAPABILITY_MAJOR = 9


class ScaledGroupedMM:
    """Multiplies e4m3 operands with one scale per matrix, adding up in float32, into bfloat16."""

    row_multiple = 16
    """Each expert's rows start on 16 bytes, which the tensor memory accelerator asks for."""

    @classmethod
    def for_device(cls, recipe: Recipe, device: torch.device) -> "ScaledGroupedMM | None":
        """Returns what multiplies after this recipe on the device, or None if only emulation can."""
        casts = (recipe.activation, recipe.weight, recipe.gradient)
        fits = all(cast.number_format == E4M3 and cast.rule == "float32" and cast.block_size is None for cast in casts)
        if not fits or device.type != "cuda":
            return None
        return cls() if torch.cuda.get_device_capability(device)[0] == _CAPABILITY_MAJOR else None

    def rows(self, x_NC: Quantized, weight_ECF: Quantized, offsets_E: Tensor) -> Tensor:
        """Returns bfloat16 [N, F]."""
        num_experts, _, num_outputs = weight_ECF.elements_RC.shape
        return _scaled_grouped_mm(
            _row_major(x_NC.elements_RC),
            _column_major(weight_ECF.elements_RC),
            x_NC.scales.reshape(1).expand(len(x_NC.elements_RC)),
            weight_ECF.scales.reshape(num_experts, 1).expand(num_experts, num_outputs),
            offsets_E,
        )

    def columns(self, x_PD: Quantized, gradient_PF: Quantized, offsets_E: Tensor) -> Tensor:
        """Returns bfloat16 [E, D, F]."""
        num_experts = len(offsets_E)
        return _scaled_grouped_mm(
            _row_major(x_PD.elements_RC.T),
            _column_major(gradient_PF.elements_RC),
            # Where rows are summed over, every expert has scales of its own.
            x_PD.scales.reshape(1).expand(num_experts * x_PD.elements_RC.shape[1]),
            gradient_PF.scales.reshape(1).expand(num_experts * gradient_PF.elements_RC.shape[1]),
            offsets_E,
        )


def _scaled_grouped_mm(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, offsets_E: Tensor) -> Tensor:
    by_row = F.ScalingType.RowWise
    return F.scaled_grouped_mm(  # pyright: ignore[reportAttributeAccessIssue]  # torch 2.13's stub lacks it
        a, b, scale_a.contiguous(), by_row, scale_b.contiguous(), by_row, offs=offsets_E, output_dtype=torch.bfloat16
    )


def _row_major(elements: Tensor) -> Tensor:
    return elements.to(torch.float8_e4m3fn).contiguous()


def _column_major(elements: Tensor) -> Tensor:
    return elements.to(torch.float8_e4m3fn).transpose(-2, -1).contiguous().transpose(-2, -1)
