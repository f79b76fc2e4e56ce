"""Multi-head latent attention as the DeepSeek models have it. DeepSeek-AI 2024, arXiv:2405.04434, section 2.1."""

import math
from collections.abc import Iterator
from typing import Any, Literal

from trainer.config.attention import MultiHeadLatentAttentionConfig
from trainer.config.model import ModelConfig
from trainer.interop.fields import HuggingFaceFields
from trainer.interop.layout import Both, Layout, RotaryHalves, Rule, Same, ScaledRows

LATENT_NORM_EPS = 1e-6
"""That of the norms of the latents in transformers, whatever `rms_norm_eps` is."""


class LatentAttentionFields(HuggingFaceFields):
    """Without `q_lora_rank` the queries are made from the input itself."""

    rms_norm_eps: float = 1e-6
    attention_bias: Literal[False] = False
    num_key_value_heads: int | None = None
    """Without meaning for latent attention, but transformers divides by it."""
    kv_lora_rank: int
    q_lora_rank: int | None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


def latent_attention_fields(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields of a model that is known to have latent attention in every layer."""
    attention = config.attention
    assert isinstance(attention, MultiHeadLatentAttentionConfig), "Architecture.obstacles has seen to it"
    return {
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_heads,
        "kv_lora_rank": attention.kv_lora_rank,
        "q_lora_rank": attention.q_lora_rank,
        "qk_nope_head_dim": attention.qk_nope_head_dim,
        "qk_rope_head_dim": attention.qk_rope_head_dim,
        "v_head_dim": attention.v_head_dim,
        "rope_parameters": {"rope_theta": attention.rope_theta},
    }


def latent_attention_section(fields: LatentAttentionFields) -> dict[str, Any]:
    """Returns the attention section of a model."""
    return {
        "kind": "mla",
        "num_heads": fields.num_attention_heads,
        "kv_lora_rank": fields.kv_lora_rank,
        "q_lora_rank": fields.q_lora_rank,
        "qk_nope_head_dim": fields.qk_nope_head_dim,
        "qk_rope_head_dim": fields.qk_rope_head_dim,
        "v_head_dim": fields.v_head_dim,
        "rope_theta": fields.rope_parameters.rope_theta,
    }


def latent_attention_rules(layer: int, fields: LatentAttentionFields, *, interleaved: bool) -> Iterator[Rule]:
    """Yields the rules of a layer's attention, whose rotated features are in adjacent pairs there if `interleaved`.

    The norms of the latents have another epsilon there: x / sqrt(mean(x^2) + e) is s x / sqrt(mean((s x)^2) + s^2 e),
    so the rows that make the latents are scaled by s = sqrt(their epsilon / ours), 1 for a model of 1e-6.
    """
    ours, theirs = f"blocks.{layer}.attention", f"model.layers.{layer}.self_attn"
    latent_scale = math.sqrt(LATENT_NORM_EPS / fields.rms_norm_eps)
    query: Layout = Same()
    latent_and_key: Layout = ScaledRows(latent_scale, fields.kv_lora_rank)
    if not interleaved:
        query = RotaryHalves(fields.num_attention_heads, num_unrotated=fields.qk_nope_head_dim)
        latent_and_key = Both(RotaryHalves(1, num_unrotated=fields.kv_lora_rank), latent_and_key)
    if fields.q_lora_rank is None:
        yield Rule(f"{ours}.query.weight", (f"{theirs}.q_proj.weight",), query)
    else:
        yield Rule(f"{ours}.query.down.weight", (f"{theirs}.q_a_proj.weight",), ScaledRows(latent_scale))
        yield Rule(f"{ours}.query.norm.gain", (f"{theirs}.q_a_layernorm.weight",))
        yield Rule(f"{ours}.query.up.weight", (f"{theirs}.q_b_proj.weight",), query)
    yield Rule(f"{ours}.kv_down.weight", (f"{theirs}.kv_a_proj_with_mqa.weight",), latent_and_key)
    yield Rule(f"{ours}.kv_norm.gain", (f"{theirs}.kv_a_layernorm.weight",))
    yield Rule(f"{ours}.kv_up.weight", (f"{theirs}.kv_b_proj.weight",))
    yield Rule(f"{ours}.out.weight", (f"{theirs}.o_proj.weight",))
