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


AttentionConfig = Annotated[
    GroupedQueryAttentionConfig | MultiHeadLatentAttentionConfig | KimiDeltaAttentionConfig | GatedDeltaNetConfig,
    Field(discriminator="kind"),
    kind_defaults_to("gqa"),
]
"""The union of attention variants, discriminated by `kind`; without one it is `gqa`."""
