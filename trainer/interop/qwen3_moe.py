"""Qwen3-MoE: a norm per head on queries and keys, dense layers where it says so. Yang et al. 2025, arXiv:2505.09388."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from trainer.config.model import ModelConfig
from trainer.interop.architecture import Architecture
from trainer.interop.decoder import (
    expert_rules,
    grouped_query,
    grouped_query_fields,
    grouped_query_rules,
    grouped_query_section,
    mlp_rules,
    outer_rules,
    sparse_layer_fields,
    sparse_layer_section,
)
from trainer.interop.fields import NUM_EXPERTS, BiasedAttentionFields, SparseLayersFields
from trainer.interop.layout import Rule


class Qwen3MoeFields(SparseLayersFields, BiasedAttentionFields):
    """A window, if there is one, is in all layers."""

    intermediate_size: int = 6144
    moe_intermediate_size: int = 768
    num_experts: int = Field(default=128, validation_alias=NUM_EXPERTS)
    num_experts_per_tok: int = 8
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32_768
    use_sliding_window: bool = False
    sliding_window: int | None = None


class Qwen3Moe(Architecture[Qwen3MoeFields]):
    """A model with a norm per head on queries and keys, and experts in all layers or some."""

    model_type = "qwen3_moe"
    class_name = "Qwen3MoeForCausalLM"
    fields_class = Qwen3MoeFields
    attention_kind = "gqa"
    router_kinds = ("top_k",)

    def to_fields(self, config: ModelConfig, common: Mapping[str, Any]) -> Qwen3MoeFields:
        attention = grouped_query(config)
        return Qwen3MoeFields.model_validate(
            {
                **common,
                **grouped_query_fields(config),
                **sparse_layer_fields(config),
                "attention_bias": attention.bias == "all",
                "use_sliding_window": attention.window is not None,
                "sliding_window": attention.window,
            }
        )

    def to_model(self, fields: Qwen3MoeFields) -> dict[str, Any]:
        window = fields.sliding_window if fields.use_sliding_window else None
        return {
            "hidden_dim": fields.intermediate_size,
            "attention": grouped_query_section(
                fields, bias=fields.bias, qk_norm=True, qk_norm_over="head", window=window
            ),
            "moe": sparse_layer_section(fields),
        }

    def rules(self, fields: Qwen3MoeFields) -> Iterator[Rule]:
        yield from outer_rules(fields)
        for layer, is_dense in enumerate(fields.layer_is_dense):
            yield from grouped_query_rules(layer, fields, bias=fields.bias, qk_norm_over="head")
            if is_dense:
                yield from mlp_rules(f"blocks.{layer}.feed_forward", f"model.layers.{layer}.mlp")
            else:
                yield from expert_rules(layer, num_experts=fields.num_experts)
