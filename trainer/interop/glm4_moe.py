"""GLM-4-MoE: grouped queries, and experts as DeepSeek-V3 has them. GLM-4.5 Team 2025, arXiv:2508.06471.

The released models rotate half of a head's features, which ours cannot: only whole heads are exchanged.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from trainer.config.model import ModelConfig
from trainer.interop.architecture import Architecture
from trainer.interop.decoder import (
    grouped_query,
    grouped_query_fields,
    grouped_query_rules,
    grouped_query_section,
    outer_rules,
)
from trainer.interop.fields import GroupedQueryFields
from trainer.interop.layout import Rule
from trainer.interop.sigmoid_routing import (
    SigmoidRoutingFields,
    sigmoid_routing_fields,
    sigmoid_routing_rules,
    sigmoid_routing_section,
)


class Glm4MoeFields(SigmoidRoutingFields, GroupedQueryFields):
    """Biases are on queries, keys and values, or on none."""

    default_partial_rotary_factor: ClassVar[float | None] = 0.5

    intermediate_size: int = 10_944
    moe_intermediate_size: int = 1408
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131_072
    attention_bias: bool = False
    use_qk_norm: bool = False
    num_experts_per_tok: int = 8
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    first_k_dense_replace: int = 1

    def document(self) -> dict[str, Any]:
        document = super().document()
        document["rope_parameters"]["partial_rotary_factor"] = 1.0
        return document | {"partial_rotary_factor": 1.0}


class Glm4Moe(Architecture[Glm4MoeFields]):
    """A model with grouped queries whose experts are chosen by sigmoid scores, within groups or not."""

    model_type = "glm4_moe"
    class_name = "Glm4MoeForCausalLM"
    fields_class = Glm4MoeFields
    attention_kind = "gqa"
    router_kinds = ("top_k", "group_limited")

    def to_fields(self, config: ModelConfig, common: Mapping[str, Any]) -> Glm4MoeFields:
        attention = grouped_query(config)
        heads = grouped_query_fields(config)
        return Glm4MoeFields.model_validate(
            {
                **common,
                **heads,
                **sigmoid_routing_fields(config),
                "attention_bias": attention.bias == "qkv",
                "use_qk_norm": attention.qk_norm,
                "partial_rotary_factor": 1.0,
            }
        )

    def to_model(self, fields: Glm4MoeFields) -> dict[str, Any]:
        bias = "qkv" if fields.attention_bias else "none"
        return {
            "hidden_dim": fields.intermediate_size,
            "attention": grouped_query_section(fields, bias=bias, qk_norm=fields.use_qk_norm, qk_norm_over="head"),
            "moe": sigmoid_routing_section(fields),
        }

    def rules(self, fields: Glm4MoeFields) -> Iterator[Rule]:
        yield from outer_rules(fields)
        bias, norm = "qkv" if fields.attention_bias else "none", "head" if fields.use_qk_norm else None
        for layer in range(fields.num_hidden_layers):
            yield from grouped_query_rules(layer, fields, bias=bias, qk_norm_over=norm)
            yield from sigmoid_routing_rules(layer, fields)
