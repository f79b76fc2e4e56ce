"""4-bit floats in blocks of 16."""

import torch

from kernels.quantize import nvfp4
from trainer.config.precision import NVFP4Config
from trainer.precision.quantized_experts import QuantizedExperts


class NVFP4(QuantizedExperts):
    """An e4m3 scale per block and a float32 scale per tensor. The random numbers of stochastic rounding come from
    torch's global generator, whose state checkpoints hold.

    Source: NVIDIA 2025, arXiv:2509.25149.
    """

    def __init__(self, config: NVFP4Config, device: torch.device) -> None:
        recipe = nvfp4(
            stochastic_gradients=config.stochastic_gradients,
            square_weights=config.square_weight_blocks,
            hadamard=config.hadamard,
        )
        super().__init__(config, device, recipe=recipe)
