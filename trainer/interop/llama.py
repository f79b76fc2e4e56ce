"""Llama: dense, with grouped queries. Touvron et al. 2023, arXiv:2307.09288."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import model_validator

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


class LlamaFields(BiasedAttentionFields):
    """Biases are on all of the attention or on none of it."""

    intermediate_size: int
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    mlp_bias: Literal[False] = False

    @model_validator(mode="after")
    def _heads_divide(self) -> "LlamaFields":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"model.dim={self.hidden_size} is not a multiple of num_heads={self.num_attention_heads}, which "
                "transformers asks of a Llama"
            )
        return self


class Llama(Architecture[LlamaFields]):
    """A dense model with grouped-query attention."""

    model_type = "llama"
    class_name = "LlamaForCausalLM"
    fields_class = LlamaFields
    attention_kind = "gqa"
    router_kinds = ()

    def to_fields(self, config: ModelConfig, common: Mapping[str, Any]) -> LlamaFields:
        bias = grouped_query(config).bias == "all"
        return LlamaFields.model_validate(
            {
                **common,
                **grouped_query_fields(config),
                "intermediate_size": config.hidden_dim,
                "attention_bias": bias,
            }
        )

    def to_model(self, fields: LlamaFields) -> dict[str, Any]:
        return {"hidden_dim": fields.intermediate_size, "attention": grouped_query_section(fields, bias=fields.bias)}

    def rules(self, fields: LlamaFields) -> Iterator[Rule]:
        yield from outer_rules(fields)
        for layer in range(fields.num_hidden_layers):
            yield from grouped_query_rules(layer, fields, bias=fields.bias)
            yield from mlp_rules(f"blocks.{layer}.feed_forward", f"model.layers.{layer}.mlp")
