"""bfloat16 autocast over float32 weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainer.config.precision import BFloat16AutocastConfig
from trainer.precision.base import Precision


class BFloat16Autocast(Precision):
    """Matrix products and attention in bfloat16; it has float32's exponent range, so no loss scaling is needed.

    Source: Kalamkar et al. 2019, arXiv:1905.12322.
    """

    def __init__(self, config: BFloat16AutocastConfig, device: torch.device) -> None:
        del config
        self.device_type = device.type

    @property
    def description(self) -> str:
        return "bf16_autocast"

    @contextmanager
    def autocast(self) -> Iterator[None]:
        with torch.autocast(self.device_type, dtype=torch.bfloat16):
            yield
