"""Numeric precisions."""

from typing import TYPE_CHECKING

from trainer.registry import Registry

if TYPE_CHECKING:
    from trainer.precision.base import Precision

PRECISIONS: Registry["Precision"] = Registry(
    "precision",
    {
        "bf16_autocast": "trainer.precision.bf16_autocast:BFloat16Autocast",
        "fp32": "trainer.precision.fp32:Float32",
    },
)
"""`kind` of a PrecisionConfig -> its class."""

__all__ = ["PRECISIONS"]
