"""DeepSeek-V3: latent attention, and experts by sigmoid scores. DeepSeek-AI 2024, arXiv:2412.19437."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from trainer.config.attention import MultiHeadLatentAttentionConfig
from trainer.config.model import ModelConfig
from trainer.interop.architecture import Architecture
from trainer.interop.decoder import outer_rules
from trainer.interop.layout import Both, Layout, RotaryHalves, Rule, Same, ScaledRows
from trainer.interop.sigmoid_routing import (
    SigmoidRoutingFields,
    sigmoid_routing_fields,
    sigmoid_routing_rules,
    sigmoid_routing_section,
)

LATENT_NORM_EPS = 1e-6
"""That of the norms of the latents in transformers, whatever `rms_norm_eps` is."""


class DeepseekV3Fields(SigmoidRoutingFields):
    """Without `q_lora_rank` the queries are made from the input itself."""

    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 4096
    attention_bias: Literal[False] = False
    num_key_value_heads: int | None = None
    """Without meaning for latent attention, but transformers divides by it."""
    kv_lora_rank: int
    q_lora_rank: int | None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope_interleave: bool = True
    n_group: int = 8
    topk_group: int = 4
    routed_scaling_factor: float = 2.5
    first_k_dense_replace: int = 3


class DeepseekV3(Architecture[DeepseekV3Fields]):
    """A model with latent attention whose experts are chosen by sigmoid scores, within groups or not."""

    model_type = "deepseek_v3"
    class_name = "DeepseekV3ForCausalLM"
    fields_class = DeepseekV3Fields
    attention_kind = "mla"
    router_kinds = ("top_k", "group_limited")

    def to_fields(self, config: ModelConfig, common: Mapping[str, Any]) -> DeepseekV3Fields:
        attention = config.attention
        assert isinstance(attention, MultiHeadLatentAttentionConfig), "obstacles() has seen to it"
        return DeepseekV3Fields.model_validate(
            {
                **common,
                **sigmoid_routing_fields(config),
                "num_attention_heads": attention.num_heads,
                "num_key_value_heads": attention.num_heads,
                "kv_lora_rank": attention.kv_lora_rank,
                "q_lora_rank": attention.q_lora_rank,
                "qk_nope_head_dim": attention.qk_nope_head_dim,
                "qk_rope_head_dim": attention.qk_rope_head_dim,
                "v_head_dim": attention.v_head_dim,
                "rope_parameters": {"rope_theta": attention.rope_theta},
            }
        )

    def to_model(self, fields: DeepseekV3Fields) -> dict[str, Any]:
        return {
            "hidden_dim": fields.intermediate_size,
            "attention": {
                "kind": "mla",
                "num_heads": fields.num_attention_heads,
                "kv_lora_rank": fields.kv_lora_rank,
                "q_lora_rank": fields.q_lora_rank,
                "qk_nope_head_dim": fields.qk_nope_head_dim,
                "qk_rope_head_dim": fields.qk_rope_head_dim,
                "v_head_dim": fields.v_head_dim,
                "rope_theta": fields.rope_parameters.rope_theta,
            },
            "moe": sigmoid_routing_section(fields),
        }

    def rules(self, fields: DeepseekV3Fields) -> Iterator[Rule]:
        yield from outer_rules(fields)
        for layer in range(fields.num_hidden_layers):
            yield from _latent_attention_rules(layer, fields)
            yield from sigmoid_routing_rules(layer, fields)


def _latent_attention_rules(layer: int, fields: DeepseekV3Fields) -> Iterator[Rule]:
    """Yields the rules of a layer's attention.

    The norms of the latents have another epsilon there: x / sqrt(mean(x^2) + e) is s x / sqrt(mean((s x)^2) + s^2 e),
    so the rows that make the latents are scaled by s = sqrt(their epsilon / ours), 1 for a model of 1e-6.
    """
    ours, theirs = f"blocks.{layer}.attention", f"model.layers.{layer}.self_attn"
    latent_scale = math.sqrt(LATENT_NORM_EPS / fields.rms_norm_eps)
    # Interleaved is adjacent pairs, as ours.
    query: Layout = Same()
    latent_and_key: Layout = ScaledRows(latent_scale, fields.kv_lora_rank)
    if not fields.rope_interleave:
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
