"""8-bit floats with float32 scales."""

import torch

from kernels.quantize import fp8_block, fp8_tensor
from trainer.config.precision import FP8Config
from trainer.precision.quantized_experts import QuantizedExperts


class FP8(QuantizedExperts):
    """One scale per tensor, or per block of 128.

    Source: Micikevicius et al. 2022, arXiv:2209.05433; DeepSeek-AI 2024, arXiv:2412.19437, section 3.3.
    """

    def __init__(self, config: FP8Config, device: torch.device) -> None:
        make = fp8_block if config.scaling == "block" else fp8_tensor
        super().__init__(config, device, recipe=make(gradient_format=config.gradient_format))
