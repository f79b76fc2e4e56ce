"""Gradient clipping."""

from typing import TYPE_CHECKING

from trainer.registry import Registry

if TYPE_CHECKING:
    from trainer.clipping.base import Clipper

CLIPPERS: Registry["Clipper"] = Registry(
    "clipping",
    {
        "adagc": "trainer.clipping.adagc:AdaGC",
        "global_norm": "trainer.clipping.global_norm:GlobalNorm",
        "none": "trainer.clipping.none:NoClipping",
        "zclip": "trainer.clipping.zclip:ZClip",
    },
)
"""`kind` of a ClippingConfig -> its class."""

__all__ = ["CLIPPERS"]
