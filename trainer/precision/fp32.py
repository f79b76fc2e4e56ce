"""float32 throughout."""

from contextlib import AbstractContextManager, nullcontext

import torch

from trainer.config.precision import Float32Config
from trainer.precision.base import Precision


class Float32(Precision):
    """Leaves every operation in float32. On CUDA, matmuls follow torch's own TF32 switch."""

    def __init__(self, config: Float32Config, device: torch.device) -> None:
        del config, device

    @property
    def description(self) -> str:
        return "fp32"

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()
