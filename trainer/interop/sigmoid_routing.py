"""Feed-forward layers after DeepSeek-V3: sigmoid scores, groups, a selection bias, shared experts, dense layers first.

Source: DeepSeek-AI 2024, arXiv:2412.19437, section 2.1.2; GLM-4.5 has the same, arXiv:2508.06471.
"""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import AliasChoices, Field

from trainer.config.model import ModelConfig
from trainer.config.routers import GroupLimitedRouterConfig
from trainer.interop.decoder import expert_rules, experts_and_router, mlp_rules, shared_rules
from trainer.interop.fields import NUM_EXPERTS, HuggingFaceFields
from trainer.interop.layout import Rule

UPDATE_RATE = 0.001
"""Of the selection bias, for training on: DeepSeek-V3, section 4.2."""


class SigmoidRoutingFields(HuggingFaceFields):
    """`n_group == topk_group` limits nothing."""

    intermediate_size: int
    """Width of a dense layer."""
    moe_intermediate_size: int
    n_shared_experts: int = Field(default=1, ge=0)
    n_routed_experts: int = Field(validation_alias=NUM_EXPERTS)
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    norm_topk_prob: bool = True
    routed_scaling_factor: float
    scoring_func: Literal["sigmoid"] = "sigmoid"
    topk_method: Literal["noaux_tc"] = "noaux_tc"
    first_k_dense_replace: int
    moe_layer_freq: Literal[1] = 1
    num_nextn_predict_layers: int = Field(
        default=0, validation_alias=AliasChoices("num_nextn_predict_layers", "num_mtp_layers")
    )
    """Layers that predict further tokens, behind the last one; importing leaves them out."""


def sigmoid_routing_fields(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields of the feed-forward layers."""
    moe, router = experts_and_router(config)
    groups = (1, 1)
    if isinstance(router, GroupLimitedRouterConfig) and router.groups_per_token < router.num_groups:
        groups = (router.num_groups, router.groups_per_token)
    return {
        "intermediate_size": config.hidden_dim,
        "moe_intermediate_size": moe.hidden_dim,
        "n_shared_experts": moe.num_shared_experts,
        "n_routed_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "n_group": groups[0],
        "topk_group": groups[1],
        "norm_topk_prob": router.normalize,
        "routed_scaling_factor": router.scale,
        "first_k_dense_replace": moe.num_dense_layers,
    }


def sigmoid_routing_section(fields: SigmoidRoutingFields) -> dict[str, Any]:
    """Returns the moe section of a model."""
    router = {
        "kind": "top_k",
        "score": "sigmoid",
        "normalize": fields.norm_topk_prob,
        "scale": fields.routed_scaling_factor,
    }
    if fields.topk_group < fields.n_group:
        router |= {
            "kind": "group_limited",
            "num_groups": fields.n_group,
            "groups_per_token": fields.topk_group,
            "group_score": "best_two",
        }
    return {
        "num_experts": fields.n_routed_experts,
        "top_k": fields.num_experts_per_tok,
        "hidden_dim": fields.moe_intermediate_size,
        "num_shared_experts": fields.n_shared_experts,
        "num_dense_layers": fields.first_k_dense_replace,
        "router": router,
        # The checkpoint has a selection bias; only under this method a model of ours has one.
        "balancing": [{"kind": "loss_free_bias", "update_rate": UPDATE_RATE}],
    }


def sigmoid_routing_rules(layer: int, fields: SigmoidRoutingFields) -> Iterator[Rule]:
    """Yields the rules of a layer's feed-forward network."""
    ours, theirs = f"blocks.{layer}.feed_forward", f"model.layers.{layer}.mlp"
    if layer < fields.first_k_dense_replace:
        yield from mlp_rules(ours, theirs)
        return
    yield from expert_rules(layer, num_experts=fields.n_routed_experts)
    bias = f"{theirs}.gate.e_score_correction_bias"
    yield Rule(f"{ours}.selection_bias_E", (bias,), absent=(fields.n_routed_experts,))
    yield from shared_rules(
        f"{ours}.shared", f"{theirs}.shared_experts", num_shared=fields.n_shared_experts, dim=fields.hidden_size
    )
