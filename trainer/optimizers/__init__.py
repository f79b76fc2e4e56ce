"""Optimizers."""

from typing import TYPE_CHECKING

from trainer.registry import Registry

if TYPE_CHECKING:
    from trainer.optimizers.base import OptimizerBuilder

OPTIMIZERS: Registry["OptimizerBuilder"] = Registry("optimizer", {"adamw": "trainer.optimizers.adamw:AdamW"})
"""`kind` of an OptimizerConfig -> its class."""

__all__ = ["OPTIMIZERS"]
