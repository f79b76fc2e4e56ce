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
        "fp8": "trainer.precision.fp8:FP8",
        "mxfp8": "trainer.precision.mxfp8:MXFP8",
        "nvfp4": "trainer.precision.nvfp4:NVFP4",
    },
)
"""`kind` of a PrecisionConfig -> its class."""

__all__ = ["PRECISIONS"]
