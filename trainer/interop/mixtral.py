"""Mixtral: a softmax over the chosen experts, optionally a sliding window. Jiang et al. 2024, arXiv:2401.04088."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import Field

from trainer.config.model import ModelConfig
from trainer.interop.architecture import Architecture
from trainer.interop.decoder import (
    ExpertNames,
    expert_rules,
    experts_and_router,
    grouped_query,
    grouped_query_fields,
    grouped_query_rules,
    grouped_query_section,
    outer_rules,
)
from trainer.interop.fields import NUM_EXPERTS, GroupedQueryFields
from trainer.interop.layout import Rule


class MixtralFields(GroupedQueryFields):
    """Every layer has experts."""

    default_rope_theta: ClassVar[float] = 1_000_000.0

    intermediate_size: int
    """Width of an expert."""
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131_072
    num_local_experts: int = Field(default=8, validation_alias=NUM_EXPERTS)
    num_experts_per_tok: int = 2
    sliding_window: int | None = None


class Mixtral(Architecture[MixtralFields]):
    """A model with experts in every layer whose softmax weights sum to one."""

    model_type = "mixtral"
    class_name = "MixtralForCausalLM"
    fields_class = MixtralFields
    attention_kind = "gqa"
    router_kinds = ("top_k",)
    expert_names = ExpertNames(layer="block_sparse_moe", gate="w1", up="w3", down="w2")

    def to_fields(self, config: ModelConfig, common: Mapping[str, Any]) -> MixtralFields:
        moe, _ = experts_and_router(config)
        return MixtralFields.model_validate(
            {
                **common,
                **grouped_query_fields(config),
                "intermediate_size": moe.hidden_dim,
                "num_local_experts": moe.num_experts,
                "num_experts_per_tok": moe.top_k,
                "sliding_window": grouped_query(config).window,
            }
        )

    def to_model(self, fields: MixtralFields) -> dict[str, Any]:
        return {
            "hidden_dim": fields.intermediate_size,
            "attention": grouped_query_section(fields, window=fields.sliding_window),
            "moe": {
                "num_experts": fields.num_local_experts,
                "top_k": fields.num_experts_per_tok,
                "hidden_dim": fields.intermediate_size,
                "router": {"kind": "top_k", "score": "softmax", "normalize": True},
            },
        }

    def rules(self, fields: MixtralFields) -> Iterator[Rule]:
        yield from outer_rules(fields)
        for layer in range(fields.num_hidden_layers):
            yield from grouped_query_rules(layer, fields)
            yield from expert_rules(layer, num_experts=fields.num_local_experts, names=self.expert_names)
