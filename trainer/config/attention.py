"""Attention variants."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.section import Section, kind_defaults_to


class GroupedQueryAttentionConfig(Section):
    """Grouped-query attention with rotary positions; `num_kv_heads == num_heads` is multi-head attention.

    Sources: Ainslie et al. 2023, arXiv:2305.13245; window: Beltagy et al. 2020, arXiv:2004.05150; biases and sinks:
    OpenAI 2025 (gpt-oss), arXiv:2508.10925.
    """

    kind: Literal["gqa"] = "gqa"
    num_heads: int = Field(ge=1, le=1024)
    num_kv_heads: int = Field(ge=1, le=1024)
    head_dim: int = Field(ge=2, le=1024, multiple_of=2)
    qk_norm: bool = False
    """RMSNorm over queries and keys before the rotation."""
    qk_norm_over: Literal["head", "all_heads"] = "head"
    """What one norm covers: each head for itself (Qwen3), or the features of all heads at once (OLMoE)."""
    window: int | None = Field(default=None, ge=1, le=2**24)
    """Positions a position sees, itself included; null for all before it."""
    bias: Literal["none", "qkv", "all"] = "none"
    """Biases on none, on queries, keys and values (Qwen2), or on the output projection too (gpt-oss)."""
    sinks: bool = False
    """A learned logit per head that takes part in the softmax and has no value."""
    rope_theta: float = Field(default=10_000.0, gt=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> "GroupedQueryAttentionConfig":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; "
                f"choose a divisor of {self.num_heads}"
            )
        return self


class MultiHeadLatentAttentionConfig(Section):
    """Keys and values of all heads from one small latent vector per position, which is all that decoding has to keep.

    Source: DeepSeek-V2, arXiv:2405.04434, eq. 9-19.
    """

    kind: Literal["mla"] = "mla"
    num_heads: int = Field(ge=1, le=1024)
    kv_lora_rank: int = Field(ge=1, le=65_536)
    """Width of the latent that keys and values are made from."""
    q_lora_rank: int | None = Field(default=None, ge=1, le=65_536)
    """Width of a latent that queries are made from; null makes them from the input itself (DeepSeek-V2-Lite)."""
    qk_nope_head_dim: int = Field(ge=1, le=1024)
    """Features of a head's query and key without position."""
    qk_rope_head_dim: int = Field(ge=2, le=1024, multiple_of=2)
    """Rotated features of a head's query and key; the keys' are shared by all heads."""
    v_head_dim: int = Field(ge=1, le=1024)
    rope_theta: float = Field(default=10_000.0, gt=1)


class KimiDeltaAttentionConfig(Section):
    """Linear attention by the gated delta rule with a decay per key feature. Its cost grows with the length.

    Source: Kimi Linear, arXiv:2510.26692.
    """

    kind: Literal["kda"] = "kda"
    num_heads: int = Field(ge=1, le=1024)
    head_dim: int = Field(ge=2, le=1024)
    """Of queries, keys and values, and the rank that decay and output gate are made through."""
    conv_size: int = Field(default=4, ge=1, le=64)
    """Positions the short convolution of queries, keys and values sees, its own included."""


class GatedDeltaNetConfig(Section):
    """Linear attention by the gated delta rule with one decay per head.

    Source: Yang et al. 2024, arXiv:2412.06464.
    """

    kind: Literal["gdn"] = "gdn"
    num_heads: int = Field(ge=1, le=1024)
    head_dim: int = Field(ge=2, le=1024)
    """Of queries and keys."""
    v_head_dim: int = Field(ge=2, le=2048)
    """Of values. Not 1: the norm of a head's result would leave nothing but a sign."""
    conv_size: int = Field(default=4, ge=1, le=64)
    """Positions the short convolution of queries, keys and values sees, its own included."""


class NativeSparseAttentionConfig(Section):
    """Every query attends to compressed blocks, to the blocks selected by their weight, and to a window.

    The paper's sizes: compression 32 every 16, selection 16 blocks of 64, window 512.

    Source: Yuan et al. 2025, arXiv:2502.11089, eq. 5-12.
    """

    kind: Literal["nsa"] = "nsa"
    num_heads: int = Field(ge=1, le=1024)
    num_kv_heads: int = Field(ge=1, le=1024)
    head_dim: int = Field(ge=2, le=1024, multiple_of=2)
    compression_block_size: int = Field(ge=1, le=2**16)
    """Positions that become one compressed key and value."""
    compression_stride: int = Field(ge=1, le=2**16)
    """Positions from one compressed block to the next."""
    selection_block_size: int = Field(ge=1, le=2**16)
    num_selected_blocks: int = Field(ge=3, le=2**16)
    """Blocks a query sees whole, of which three are always the first one, its own, and the one before."""
    window: int = Field(ge=1, le=2**24)
    rope_theta: float = Field(default=10_000.0, gt=1)

    @model_validator(mode="after")
    def _sizes_fit(self) -> "NativeSparseAttentionConfig":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; "
                f"choose a divisor of {self.num_heads}"
            )
        for name in ("compression_block_size", "selection_block_size"):
            if getattr(self, name) % self.compression_stride:
                raise ValueError(
                    f"{name}={getattr(self, name)} is not a multiple of compression_stride="
                    f"{self.compression_stride}; choose a multiple, so that blocks begin and end together"
                )
        if self.compression_block_size > self.selection_block_size:
            raise ValueError(
                f"compression_block_size={self.compression_block_size} exceeds selection_block_size="
                f"{self.selection_block_size}; lower it, a compressed block scores the selected blocks it lies in"
            )
        if self.selection_block_size > self.window:
            raise ValueError(
                f"selection_block_size={self.selection_block_size} exceeds window={self.window}; lower it or widen "
                "the window"
            )
        return self


AttentionConfig = Annotated[
    GroupedQueryAttentionConfig
    | MultiHeadLatentAttentionConfig
    | KimiDeltaAttentionConfig
    | GatedDeltaNetConfig
    | NativeSparseAttentionConfig,
    Field(discriminator="kind"),
    kind_defaults_to("gqa"),
]
"""The union of attention variants, discriminated by `kind`; without one it is `gqa`."""
