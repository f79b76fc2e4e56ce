"""Optimizers."""

from typing import TYPE_CHECKING

from trainer.registry import Registry

if TYPE_CHECKING:
    from trainer.optimizers.base import OptimizerBuilder

OPTIMIZERS: Registry["OptimizerBuilder"] = Registry(
    "optimizer",
    {
        "adafactor": "trainer.optimizers.adafactor:Adafactor",
        "adamw": "trainer.optimizers.adamw:AdamW",
        "by_pattern": "trainer.optimizers.by_pattern:ByPattern",
        "by_role": "trainer.optimizers.by_role:ByRole",
        "lion": "trainer.optimizers.lion:Lion",
        "muon": "trainer.optimizers.muon:Muon",
        "shampoo": "trainer.optimizers.shampoo:Shampoo",
        "soap": "trainer.optimizers.soap:SOAP",
    },
)
"""`kind` of an OptimizerConfig -> its class."""

__all__ = ["OPTIMIZERS"]
