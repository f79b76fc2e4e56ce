"""DeepSeek-V3: latent attention, and experts by sigmoid scores. DeepSeek-AI 2024, arXiv:2412.19437."""

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.config.model import ModelConfig
from trainer.interop.architecture import Architecture
from trainer.interop.decoder import outer_rules
from trainer.interop.latent_attention import (
    LatentAttentionFields,
    latent_attention_fields,
    latent_attention_rules,
    latent_attention_section,
)
from trainer.interop.layout import Rule
from trainer.interop.sigmoid_routing import (
    SigmoidRoutingFields,
    sigmoid_routing_fields,
    sigmoid_routing_rules,
    sigmoid_routing_section,
)


class DeepseekV3Fields(SigmoidRoutingFields, LatentAttentionFields):
    """With the values that transformers gives to what is missing."""

    max_position_embeddings: int = 4096
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
        return DeepseekV3Fields.model_validate(
            {**common, **latent_attention_fields(config), **sigmoid_routing_fields(config)}
        )

    def to_model(self, fields: DeepseekV3Fields) -> dict[str, Any]:
        return {
            "hidden_dim": fields.intermediate_size,
            "attention": latent_attention_section(fields),
            "moe": sigmoid_routing_section(fields),
        }

    def rules(self, fields: DeepseekV3Fields) -> Iterator[Rule]:
        yield from outer_rules(fields)
        for layer in range(fields.num_hidden_layers):
            yield from latent_attention_rules(layer, fields, interleaved=fields.rope_interleave)
            yield from sigmoid_routing_rules(layer, fields)
