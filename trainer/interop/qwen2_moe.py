"""Qwen2-MoE and Qwen1.5-MoE: shared experts behind a gate per token, biases on queries, keys and values.

Source: Yang et al. 2024, arXiv:2407.10671, section 2.2.2.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

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
    mlp_rules,
    outer_rules,
    sparse_layer_fields,
    sparse_layer_section,
)
from trainer.interop.fields import NUM_EXPERTS, SparseLayersFields
from trainer.interop.layout import Rule


class Qwen2MoeFields(SparseLayersFields):
    """The shared experts are one network, as ours; its width has to be a multiple of an expert's."""

    intermediate_size: int = 5632
    moe_intermediate_size: int = 1408
    shared_expert_intermediate_size: int = Field(default=5632, gt=0)
    num_experts: int = Field(default=60, validation_alias=NUM_EXPERTS)
    num_experts_per_tok: int = 4
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32_768
    qkv_bias: bool = True
    use_sliding_window: Literal[False] = False

    @model_validator(mode="after")
    def _shared_experts_are_whole(self) -> "Qwen2MoeFields":
        if self.shared_expert_intermediate_size % self.moe_intermediate_size:
            raise ValueError(
                f"shared_expert_intermediate_size={self.shared_expert_intermediate_size} is not a multiple of "
                f"moe_intermediate_size={self.moe_intermediate_size}; shared experts are as wide as the others"
            )
        return self


class Qwen2Moe(Architecture[Qwen2MoeFields]):
    """A model with gated shared experts beside the routed ones."""

    model_type = "qwen2_moe"
    class_name = "Qwen2MoeForCausalLM"
    fields_class = Qwen2MoeFields
    attention_kind = "gqa"
    router_kinds = ("top_k",)

    def to_fields(self, config: ModelConfig, common: Mapping[str, Any]) -> Qwen2MoeFields:
        moe, _ = experts_and_router(config)
        return Qwen2MoeFields.model_validate(
            {
                **common,
                **grouped_query_fields(config),
                **sparse_layer_fields(config),
                "shared_expert_intermediate_size": moe.num_shared_experts * moe.hidden_dim,
                "qkv_bias": grouped_query(config).bias == "qkv",
            }
        )

    def to_model(self, fields: Qwen2MoeFields) -> dict[str, Any]:
        num_shared = fields.shared_expert_intermediate_size // fields.moe_intermediate_size
        bias = "qkv" if fields.qkv_bias else "none"
        return {
            "hidden_dim": fields.intermediate_size,
            "attention": grouped_query_section(fields, bias=bias),
            "moe": sparse_layer_section(fields, num_shared_experts=num_shared, shared_gate=True),
        }

    def rules(self, fields: Qwen2MoeFields) -> Iterator[Rule]:
        yield from outer_rules(fields)
        for layer, is_dense in enumerate(fields.layer_is_dense):
            yield from grouped_query_rules(layer, fields, bias="qkv" if fields.qkv_bias else "none")
            ours, theirs = f"blocks.{layer}.feed_forward", f"model.layers.{layer}.mlp"
            if is_dense:
                yield from mlp_rules(ours, theirs)
                continue
            yield from expert_rules(layer, num_experts=fields.num_experts)
            yield from mlp_rules(f"{ours}.shared", f"{theirs}.shared_expert")
            yield Rule(f"{ours}.shared_gate.weight", (f"{theirs}.shared_expert_gate.weight",))
