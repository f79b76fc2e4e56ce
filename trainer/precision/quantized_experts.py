"""Precisions of the experts' matmuls: what they have in common."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from kernels.quantize import QuantizedMatmul, Recipe
from trainer.config.precision import BFloat16AutocastConfig, Float32Config, QuantizedExpertsConfig
from trainer.model.transformer import Transformer
from trainer.precision.base import Precision
from trainer.precision.bf16_autocast import BFloat16Autocast
from trainer.precision.fp32 import Float32


class QuantizedExperts(Precision):
    """Multiplies the routed experts' matrices in a narrow format, forward and backward; shared experts and every other
    layer are computed in the precision of `rest`.

    Args:
        config: the precision's own.
        device: the model's.
        recipe: which casts the config asks for.
    """

    def __init__(self, config: QuantizedExpertsConfig, device: torch.device, *, recipe: Recipe) -> None:
        self._kind = config.kind
        self._recipe = recipe
        self._device = device
        self._is_emulated = QuantizedMatmul(recipe, device=device).is_emulated
        self._rest = (
            Float32(Float32Config(), device)
            if config.rest == "fp32"
            else BFloat16Autocast(BFloat16AutocastConfig(), device)
        )
        self._matmuls: list[QuantizedMatmul] = []

    @property
    def description(self) -> str:
        return f"{self._kind} ({'emulated' if self._is_emulated else 'on the device'}), rest {self._rest.description}"

    def autocast(self) -> AbstractContextManager[None]:
        return self._rest.autocast()

    def apply_to(self, model: Transformer) -> None:
        layers = model.moe_layers()
        self._matmuls = [QuantizedMatmul(self._recipe, device=self._device) for _ in layers]
        for layer, matmul in zip(layers, self._matmuls, strict=True):
            layer.experts.matmul = matmul

    def take_cast_counts(self) -> Tensor | None:
        if not self._matmuls:
            return None
        return torch.stack([matmul.take_counts() for matmul in self._matmuls])
