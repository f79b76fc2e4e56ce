"""An example config for every kind of a family, made from its schema, so that a new component needs no new test."""

import types
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter

from trainer.config.attention import AttentionConfig
from trainer.config.routers import RouterConfig


def config_classes(union: Any) -> dict[str, type[BaseModel]]:
    """Returns `kind -> config class` of a family's config type: one class, or a discriminated union of several."""
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    members = get_args(union) if get_origin(union) in (Union, types.UnionType) else (union,)
    return {member.model_fields["kind"].default: member for member in members}


def example_config(union: Any, kind: str, **fields: Any) -> Any:
    """Returns a config of this kind with a small allowed value for each required field; `fields` replace them."""
    config_class = config_classes(union)[kind]
    schema = config_class.model_json_schema()
    required = {name: _small_value(schema["properties"][name]) for name in schema.get("required", ())}
    return config_class.model_validate(required | fields)


ATTENTION_VARIANTS: dict[str, dict[str, Any]] = {
    "gqa-window": {"kind": "gqa", "num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "window": 4},
    "gqa-sinks": {"kind": "gqa", "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "bias": "qkv", "sinks": True},
    "gqa-gpt-oss": {
        "kind": "gqa",
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "window": 3,
        "bias": "all",
        "sinks": True,
    },
    "gqa-olmoe": {
        "kind": "gqa",
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "qk_norm": True,
        "qk_norm_over": "all_heads",
    },
    "mla-q-lora": {
        "kind": "mla",
        "num_heads": 3,
        "kv_lora_rank": 10,
        "q_lora_rank": 12,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    },
    "kda-heads": {"kind": "kda", "num_heads": 3, "head_dim": 10, "conv_size": 3},
    "gdn-heads": {"kind": "gdn", "num_heads": 3, "head_dim": 6, "v_head_dim": 10},
    "nsa-blocks": {
        "kind": "nsa",
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 6,
        "compression_block_size": 4,
        "compression_stride": 2,
        "selection_block_size": 4,
        "num_selected_blocks": 3,
        "window": 5,
    },
    "mla-wide-values": {
        "kind": "mla",
        "num_heads": 2,
        "kv_lora_rank": 10,
        "qk_nope_head_dim": 5,
        "qk_rope_head_dim": 4,
        "v_head_dim": 12,
    },
}
"""Configs beyond the smallest of each kind, for the options that have code of their own."""


def attention_examples() -> dict[str, Any]:
    """Returns the smallest config of every attention kind, and the variants, by a name for test ids."""
    smallest = {kind: example_config(AttentionConfig, kind) for kind in config_classes(AttentionConfig)}
    adapter: TypeAdapter[Any] = TypeAdapter(AttentionConfig)
    return smallest | {name: adapter.validate_python(fields) for name, fields in ATTENTION_VARIANTS.items()}


ROUTER_VARIANTS: dict[str, dict[str, Any]] = {
    "expert_choice-predictor": {"kind": "expert_choice", "score": "sigmoid", "predictor": True, "bias": True},
    "expert_choice-sequence": {"kind": "expert_choice", "scope": "sequence", "capacity_factor": 0.7, "scale": 2.5},
}
"""Configs beyond the smallest of each kind, for the options that have code of their own."""


def router_examples() -> dict[str, Any]:
    """Returns the smallest config of every router kind, and the variants, by a name for test ids."""
    smallest = {kind: example_config(RouterConfig, kind) for kind in config_classes(RouterConfig)}
    adapter: TypeAdapter[Any] = TypeAdapter(RouterConfig)
    return smallest | {name: adapter.validate_python(fields) for name, fields in ROUTER_VARIANTS.items()}


def _small_value(schema: dict[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "integer":
            return max(schema.get("minimum", 1), schema.get("multipleOf", 1))
        case "number":
            lowest = schema.get("exclusiveMinimum", schema.get("minimum", 0.0))
            highest = schema.get("maximum", schema.get("exclusiveMaximum", lowest + 1.0))
            return lowest + 0.01 * (highest - lowest)
        case "boolean":
            return False
    raise NotImplementedError(f"say here what a small value is for {schema}")
