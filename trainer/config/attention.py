"""Attention variants."""

from typing import Literal

from pydantic import Field, model_validator

from trainer.config.section import Section


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


AttentionConfig = GroupedQueryAttentionConfig
"""The union of attention variants, discriminated by `kind` once there is more than one."""
