"""Attention variants: how positions exchange information."""

from typing import TYPE_CHECKING

from trainer.registry import Registry

if TYPE_CHECKING:
    from trainer.attention.base import Attention

ATTENTIONS: Registry["Attention"] = Registry(
    "attention",
    {
        "gdn": "trainer.attention.gdn:GatedDeltaNet",
        "gqa": "trainer.attention.gqa:GroupedQueryAttention",
        "kda": "trainer.attention.kda:KimiDeltaAttention",
        "mla": "trainer.attention.mla:MultiHeadLatentAttention",
        "nsa": "trainer.attention.nsa:NativeSparseAttention",
    },
)
"""`kind` of an AttentionConfig -> its class."""

__all__ = ["ATTENTIONS"]
