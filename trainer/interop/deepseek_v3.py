"""DeepSeek-V3: latent attention, sigmoid scores in groups, a selection bias, shared experts. arXiv:2412.19437."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import AliasChoices, Field

from trainer.config.attention import MultiHeadLatentAttentionConfig
from trainer.config.model import ModelConfig
from trainer.config.routers import GroupLimitedRouterConfig
from trainer.interop.architecture import Architecture
from trainer.interop.decoder import expert_rules, experts_and_router, mlp_rules, outer_rules
from trainer.interop.fields import NUM_EXPERTS, HuggingFaceFields
from trainer.interop.layout import Both, Layout, RotaryHalves, Rule, Same, ScaledRows

LATENT_NORM_EPS = 1e-6
"""That of the norms of the latents in transformers, whatever `rms_norm_eps` is."""

UPDATE_RATE = 0.001
"""Of the selection bias, for training on: section 4.2 of the paper."""


class DeepseekV3Fields(HuggingFaceFields):
    """The dense layers come first; `n_group == topk_group` limits nothing."""

    intermediate_size: int
    """Width of a dense layer."""
    moe_intermediate_size: int
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
    n_shared_experts: int = Field(default=1, ge=1)
    n_routed_experts: int = Field(validation_alias=NUM_EXPERTS)
    num_experts_per_tok: int
    n_group: int = 8
    topk_group: int = 4
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    scoring_func: Literal["sigmoid"] = "sigmoid"
    topk_method: Literal["noaux_tc"] = "noaux_tc"
    first_k_dense_replace: int = 3
    moe_layer_freq: Literal[1] = 1
    num_nextn_predict_layers: int = Field(
        default=0, validation_alias=AliasChoices("num_nextn_predict_layers", "num_mtp_layers")
    )
    """Layers that predict further tokens, behind the last one; importing leaves them out."""


class DeepseekV3(Architecture[DeepseekV3Fields]):
    """A model with latent attention whose experts are chosen by sigmoid scores, within groups or not."""

    model_type = "deepseek_v3"
    class_name = "DeepseekV3ForCausalLM"
    fields_class = DeepseekV3Fields
    attention_kind = "mla"
    router_kinds = ("top_k", "group_limited")

    def to_fields(self, config: ModelConfig, common: Mapping[str, Any]) -> DeepseekV3Fields:
        moe, router = experts_and_router(config)
        attention = config.attention
        assert isinstance(attention, MultiHeadLatentAttentionConfig), "obstacles() has seen to it"
        groups = (1, 1)
        if isinstance(router, GroupLimitedRouterConfig) and router.groups_per_token < router.num_groups:
            groups = (router.num_groups, router.groups_per_token)
        return DeepseekV3Fields.model_validate(
            {
                **common,
                "num_attention_heads": attention.num_heads,
                "num_key_value_heads": attention.num_heads,
                "kv_lora_rank": attention.kv_lora_rank,
                "q_lora_rank": attention.q_lora_rank,
                "qk_nope_head_dim": attention.qk_nope_head_dim,
                "qk_rope_head_dim": attention.qk_rope_head_dim,
                "v_head_dim": attention.v_head_dim,
                "rope_parameters": {"rope_theta": attention.rope_theta},
                "intermediate_size": config.hidden_dim,
                "moe_intermediate_size": moe.hidden_dim,
                "n_shared_experts": moe.num_shared_experts,
                "n_routed_experts": moe.num_experts,
                "num_experts_per_tok": moe.top_k,
                "n_group": groups[0],
                "topk_group": groups[1],
                "norm_topk_prob": router.normalize,
                "routed_scaling_factor": router.scale,
                "first_k_dense_replace": moe.num_dense_layers,
            }
        )

    def to_model(self, fields: DeepseekV3Fields) -> dict[str, Any]:
        router = {
            "kind": "top_k",
            "score": "sigmoid",
            "normalize": fields.norm_topk_prob,
            "scale": fields.routed_scaling_factor,
        }
        if fields.topk_group < fields.n_group:
            router |= {
                "kind": "group_limited",
                "num_groups": fields.n_group,
                "groups_per_token": fields.topk_group,
                "group_score": "best_two",
            }
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
            "moe": {
                "num_experts": fields.n_routed_experts,
                "top_k": fields.num_experts_per_tok,
                "hidden_dim": fields.moe_intermediate_size,
                "num_shared_experts": fields.n_shared_experts,
                "num_dense_layers": fields.first_k_dense_replace,
                "router": router,
                # The checkpoint has a selection bias; only under this method a model of ours has one.
                "balancing": [{"kind": "loss_free_bias", "update_rate": UPDATE_RATE}],
            },
        }

    def rules(self, fields: DeepseekV3Fields) -> Iterator[Rule]:
        yield from outer_rules(fields)
        for layer in range(fields.num_hidden_layers):
            yield from _latent_attention_rules(layer, fields)
            ours, theirs = f"blocks.{layer}.feed_forward", f"model.layers.{layer}.mlp"
            if layer < fields.first_k_dense_replace:
                yield from mlp_rules(ours, theirs)
                continue
            yield from expert_rules(layer, num_experts=fields.n_routed_experts)
            yield Rule(
                f"{ours}.selection_bias_E",
                (f"{theirs}.gate.e_score_correction_bias",),
                absent=(fields.n_routed_experts,),
            )
            yield from mlp_rules(f"{ours}.shared", f"{theirs}.shared_experts")


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
