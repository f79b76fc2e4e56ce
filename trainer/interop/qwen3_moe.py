"""Qwen3-MoE: a norm per head on queries and keys, dense layers where it says so. Yang et al. 2025, arXiv:2505.09388."""

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
    mlp_rules,
    outer_rules,
)
from trainer.interop.fields import NUM_EXPERTS, GroupedQueryFields
from trainer.interop.layout import Rule


class Qwen3MoeFields(GroupedQueryFields):
    """The layers of `mlp_only_layers`, and all but every `decoder_sparse_step`-th, are dense."""

    intermediate_size: int = 6144
    """Width of a dense layer."""
    moe_intermediate_size: int = 768
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32_768
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = None
    num_experts: int = Field(default=128, validation_alias=NUM_EXPERTS)
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _dense_layers_come_first(self) -> "Qwen3MoeFields":
        kinds = self.layer_is_dense()
        if sorted(kinds, reverse=True) != kinds or all(kinds):
            dense = [layer for layer, is_dense in enumerate(kinds) if is_dense]
            raise ValueError(
                f"mlp_only_layers={self.mlp_only_layers} and decoder_sparse_step={self.decoder_sparse_step} make the "
                f"layers {dense} dense; only the first ones can be, and not all"
            )
        return self

    def layer_is_dense(self) -> list[bool]:
        """Returns for each layer whether it has no experts."""
        dense = self.mlp_only_layers or ()
        return [
            layer in dense or (layer + 1) % self.decoder_sparse_step != 0 for layer in range(self.num_hidden_layers)
        ]


class Qwen3Moe(Architecture[Qwen3MoeFields]):
    """A model with a norm per head on queries and keys, and experts after the dense layers."""

    model_type = "qwen3_moe"
    class_name = "Qwen3MoeForCausalLM"
    fields_class = Qwen3MoeFields
    attention_kind = "gqa"
    router_kinds = ("top_k",)

    def to_fields(self, config: ModelConfig, common: Mapping[str, Any]) -> Qwen3MoeFields:
        moe, router = experts_and_router(config)
        attention = grouped_query(config)
        return Qwen3MoeFields.model_validate(
            {
                **common,
                **grouped_query_fields(config),
                "attention_bias": attention.bias == "all",
                "use_sliding_window": attention.window is not None,
                "sliding_window": attention.window,
                "intermediate_size": config.hidden_dim,
                "moe_intermediate_size": moe.hidden_dim,
                "num_experts": moe.num_experts,
                "num_experts_per_tok": moe.top_k,
                "norm_topk_prob": router.normalize,
                "mlp_only_layers": [layer for layer, kind in enumerate(config.layer_kinds()) if kind == "dense"],
            }
        )

    def to_model(self, fields: Qwen3MoeFields) -> dict[str, Any]:
        return {
            "hidden_dim": fields.intermediate_size,
            "attention": grouped_query_section(
                fields,
                bias="all" if fields.attention_bias else "none",
                qk_norm=True,
                qk_norm_over="head",
                window=fields.sliding_window if fields.use_sliding_window else None,
            ),
            "moe": {
                "num_experts": fields.num_experts,
                "top_k": fields.num_experts_per_tok,
                "hidden_dim": fields.moe_intermediate_size,
                "num_dense_layers": sum(fields.layer_is_dense()),
                "router": {"kind": "top_k", "score": "softmax", "normalize": fields.norm_topk_prob},
            },
        }

    def rules(self, fields: Qwen3MoeFields) -> Iterator[Rule]:
        yield from outer_rules(fields)
        for layer, is_dense in enumerate(fields.layer_is_dense()):
            yield from grouped_query_rules(layer, fields, bias=fields.attention_bias, qk_norm_over="head")
            if is_dense:
                yield from mlp_rules(f"blocks.{layer}.feed_forward", f"model.layers.{layer}.mlp")
            else:
                yield from expert_rules(layer, num_experts=fields.num_experts)
