"""8-bit floats in blocks of 32."""

import torch

from kernels.quantize import mxfp8
from trainer.config.precision import MXFP8Config
from trainer.precision.quantized_experts import QuantizedExperts


class MXFP8(QuantizedExperts):
    """A power-of-two scale per block.

    Source: OCP Microscaling Formats (MX) v1.0; Mishra et al. 2025, arXiv:2506.08027.
    """

    def __init__(self, config: MXFP8Config, device: torch.device) -> None:
        super().__init__(config, device, recipe=mxfp8(scale_rounding=config.scale_rounding))
