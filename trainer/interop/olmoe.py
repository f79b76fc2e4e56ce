"""OLMoE: a softmax over all experts, norms over the queries and keys of all heads. arXiv:2409.02060."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, model_validator

from trainer.config.model import ModelConfig
from trainer.interop.architecture import Architecture
from trainer.interop.decoder import (
    expert_rules,
    experts_and_router,
    grouped_query,
    grouped_query_fields,
    grouped_query_rules,
    grouped_query_section,
    outer_rules,
)
from trainer.interop.fields import NUM_EXPERTS, BiasedAttentionFields
from trainer.interop.layout import Rule


class OlmoeFields(BiasedAttentionFields):
    """Every layer has experts; the heads together are as wide as the model."""

    intermediate_size: int
    """Width of an expert."""
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 4096
    clip_qkv: None = None
    num_experts: int = Field(default=64, validation_alias=NUM_EXPERTS)
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = False

    @model_validator(mode="after")
    def _heads_fill_the_model(self) -> "OlmoeFields":
        if self.num_attention_heads * self.head_width != self.hidden_size:
            raise ValueError(
                f"num_heads={self.num_attention_heads} times head_dim={self.head_width} is not model.dim="
                f"{self.hidden_size}, which transformers asks of an OLMoE"
            )
        return self


class Olmoe(Architecture[OlmoeFields]):
    """A model with experts in every layer and a norm over the queries, and the keys, of all heads at once."""

    model_type = "olmoe"
    class_name = "OlmoeForCausalLM"
    fields_class = OlmoeFields
    attention_kind = "gqa"
    router_kinds = ("top_k",)

    def to_fields(self, config: ModelConfig, common: Mapping[str, Any]) -> OlmoeFields:
        moe, router = experts_and_router(config)
        return OlmoeFields.model_validate(
            {
                **common,
                **grouped_query_fields(config),
                "attention_bias": grouped_query(config).bias == "all",
                "intermediate_size": moe.hidden_dim,
                "num_experts": moe.num_experts,
                "num_experts_per_tok": moe.top_k,
                "norm_topk_prob": router.normalize,
            }
        )

    def to_model(self, fields: OlmoeFields) -> dict[str, Any]:
        return {
            "hidden_dim": fields.intermediate_size,
            "attention": grouped_query_section(fields, bias=fields.bias, qk_norm=True, qk_norm_over="all_heads"),
            "moe": {
                "num_experts": fields.num_experts,
                "top_k": fields.num_experts_per_tok,
                "hidden_dim": fields.intermediate_size,
                "router": {"kind": "top_k", "score": "softmax", "normalize": fields.norm_topk_prob},
            },
        }

    def rules(self, fields: OlmoeFields) -> Iterator[Rule]:
        yield from outer_rules(fields)
        for layer in range(fields.num_hidden_layers):
            yield from grouped_query_rules(layer, fields, bias=fields.bias, qk_norm_over="all_heads")
            yield from expert_rules(layer, num_experts=fields.num_experts)
