"""DeepSeek-V2: latent attention, and experts by softmax scores. DeepSeek-AI 2024, arXiv:2405.04434.

The released models have YaRN positions; plain positions are exchanged.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from trainer.config.model import ModelConfig
from trainer.config.routers import GroupLimitedRouterConfig
from trainer.interop.architecture import Architecture
from trainer.interop.decoder import expert_rules, experts_and_router, mlp_rules, outer_rules, shared_rules
from trainer.interop.fields import NUM_EXPERTS
from trainer.interop.latent_attention import (
    LatentAttentionFields,
    latent_attention_fields,
    latent_attention_rules,
    latent_attention_section,
)
from trainer.interop.layout import Rule

GREEDY, GROUP_LIMITED = "greedy", "group_limited_greedy"


class DeepseekV2Fields(LatentAttentionFields):
    """Weights are the scores themselves; a group counts as its best expert."""

    intermediate_size: int
    """Width of a dense layer."""
    moe_intermediate_size: int
    max_position_embeddings: int = 2048
    mlp_bias: Literal[False] = False
    n_shared_experts: int = Field(default=2, ge=0)
    n_routed_experts: int = Field(default=64, validation_alias=NUM_EXPERTS)
    num_experts_per_tok: int
    topk_method: Literal["greedy", "group_limited_greedy"] = GREEDY
    n_group: int | None = None
    topk_group: int | None = None
    norm_topk_prob: Literal[False] = False
    scoring_func: Literal["softmax"] = "softmax"
    routed_scaling_factor: float = 1.0
    first_k_dense_replace: int = 0
    moe_layer_freq: Literal[1] = 1

    @model_validator(mode="after")
    def _fits(self) -> "DeepseekV2Fields":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"model.dim={self.hidden_size} is not a multiple of num_heads={self.num_attention_heads}, which "
                "transformers asks of a DeepSeek-V2"
            )
        if self.topk_method == GROUP_LIMITED and (self.n_group is None or self.topk_group is None):
            raise ValueError(f"topk_method={GROUP_LIMITED} needs n_group and topk_group")
        return self


class DeepseekV2(Architecture[DeepseekV2Fields]):
    """A model with latent attention whose experts are chosen and weighed by a softmax, within groups or not."""

    model_type = "deepseek_v2"
    class_name = "DeepseekV2ForCausalLM"
    fields_class = DeepseekV2Fields
    attention_kind = "mla"
    router_kinds = ("top_k", "group_limited")

    def to_fields(self, config: ModelConfig, common: Mapping[str, Any]) -> DeepseekV2Fields:
        moe, router = experts_and_router(config)
        groups: dict[str, Any] = {"topk_method": GREEDY}
        if isinstance(router, GroupLimitedRouterConfig) and router.groups_per_token < router.num_groups:
            groups = {"topk_method": GROUP_LIMITED, "n_group": router.num_groups, "topk_group": router.groups_per_token}
        return DeepseekV2Fields.model_validate(
            {
                **common,
                **latent_attention_fields(config),
                **groups,
                "intermediate_size": config.hidden_dim,
                "moe_intermediate_size": moe.hidden_dim,
                "n_shared_experts": moe.num_shared_experts,
                "n_routed_experts": moe.num_experts,
                "num_experts_per_tok": moe.top_k,
                "routed_scaling_factor": router.scale,
                "first_k_dense_replace": moe.num_dense_layers,
            }
        )

    def to_model(self, fields: DeepseekV2Fields) -> dict[str, Any]:
        router = {"kind": "top_k", "score": "softmax", "normalize": False, "scale": fields.routed_scaling_factor}
        if fields.topk_method == GROUP_LIMITED:
            router |= {
                "kind": "group_limited",
                "num_groups": fields.n_group,
                "groups_per_token": fields.topk_group,
                "group_score": "best",
            }
        return {
            "hidden_dim": fields.intermediate_size,
            "attention": latent_attention_section(fields),
            "moe": {
                "num_experts": fields.n_routed_experts,
                "top_k": fields.num_experts_per_tok,
                "hidden_dim": fields.moe_intermediate_size,
                "num_shared_experts": fields.n_shared_experts,
                "num_dense_layers": fields.first_k_dense_replace,
                "router": router,
            },
        }

    def rules(self, fields: DeepseekV2Fields) -> Iterator[Rule]:
        yield from outer_rules(fields)
        for layer in range(fields.num_hidden_layers):
            yield from latent_attention_rules(layer, fields, interleaved=True)
            ours, theirs = f"blocks.{layer}.feed_forward", f"model.layers.{layer}.mlp"
            if layer < fields.first_k_dense_replace:
                yield from mlp_rules(ours, theirs)
                continue
            yield from expert_rules(layer, num_experts=fields.n_routed_experts)
            yield from shared_rules(
                f"{ours}.shared", f"{theirs}.shared_experts", num_shared=fields.n_shared_experts, dim=fields.hidden_size
            )
