"""Qwen3: dense, with a norm per head on queries and keys. Yang et al. 2025, arXiv:2505.09388."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from trainer.config.model import ModelConfig
from trainer.interop.architecture import Architecture
from trainer.interop.decoder import (
    grouped_query,
    grouped_query_fields,
    grouped_query_rules,
    grouped_query_section,
    mlp_rules,
    outer_rules,
)
from trainer.interop.fields import BiasedAttentionFields
from trainer.interop.layout import Rule


class Qwen3Fields(BiasedAttentionFields):
    """Its heads have 128 features unless it says otherwise, whatever the width of the model."""

    intermediate_size: int
    head_dim: int | None = 128
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32_768
    use_sliding_window: Literal[False] = False


class Qwen3(Architecture[Qwen3Fields]):
    """A dense model with a norm per head on queries and keys."""

    model_type = "qwen3"
    class_name = "Qwen3ForCausalLM"
    fields_class = Qwen3Fields
    attention_kind = "gqa"
    router_kinds = ()

    def to_fields(self, config: ModelConfig, common: Mapping[str, Any]) -> Qwen3Fields:
        return Qwen3Fields.model_validate(
            {
                **common,
                **grouped_query_fields(config),
                "intermediate_size": config.hidden_dim,
                "attention_bias": grouped_query(config).bias == "all",
            }
        )

    def to_model(self, fields: Qwen3Fields) -> dict[str, Any]:
        attention = grouped_query_section(fields, bias=fields.bias, qk_norm=True, qk_norm_over="head")
        return {"hidden_dim": fields.intermediate_size, "attention": attention}

    def rules(self, fields: Qwen3Fields) -> Iterator[Rule]:
        yield from outer_rules(fields)
        for layer in range(fields.num_hidden_layers):
            yield from grouped_query_rules(layer, fields, bias=fields.bias, qk_norm_over="head")
            yield from mlp_rules(f"blocks.{layer}.feed_forward", f"model.layers.{layer}.mlp")
