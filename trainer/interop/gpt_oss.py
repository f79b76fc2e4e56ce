"""gpt-oss: sinks, biases everywhere, a clamped SwiGLU, a window in every other layer. OpenAI 2025, arXiv:2508.10925.

The released models have YaRN positions and 4-bit experts; plain positions and whole weights are exchanged.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from trainer.config.model import ModelConfig
from trainer.interop.architecture import Architecture
from trainer.interop.decoder import (
    experts_and_router,
    grouped_query_fields,
    grouped_query_rules,
    grouped_query_section,
    outer_rules,
)
from trainer.interop.fields import NUM_EXPERTS, BiasedAttentionFields
from trainer.interop.layout import GateAndUp, Rule
from trainer.interop.pattern import global_every

SLIDING, FULL = "sliding_attention", "full_attention"
GATE_UP = ("gate_up_proj", "gate_up_proj_bias")
"""Gate and up are one tensor there, column by column in turn; our names for its halves end in these."""
UNUSED_WINDOW = 128
"""transformers asks for a window even if no layer has one."""

GATE, UP = "/gate", "/up"


class GptOssFields(BiasedAttentionFields):
    """Every layer has experts, all experts have biases."""

    default_rope_theta: ClassVar[float] = 150_000.0
    default_rope_type: ClassVar[str] = "yarn"

    intermediate_size: int = 2880
    head_dim: int | None = 64
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131_072
    attention_bias: bool = True
    num_local_experts: int = Field(default=128, validation_alias=NUM_EXPERTS)
    num_experts_per_tok: int = 4
    swiglu_alpha: float = Field(default=1.702, ge=1.702, le=1.702)
    swiglu_limit: float = Field(default=7.0, ge=7.0, le=7.0)
    sliding_window: int | None = 128
    layer_types: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _layers_have_a_pattern(self) -> "GptOssFields":
        if any(self.is_full) and global_every(self.is_full) is None:
            raise ValueError(
                f"layer_types={self.layer_types} is no pattern of ours: {FULL} in every n-th layer and the last one"
            )
        if not all(self.is_full) and self.sliding_window is None:
            raise ValueError(f"sliding_window is null, but layer_types has {SLIDING}")
        return self

    @property
    def is_full(self) -> list[bool]:
        """For each layer whether it has no window."""
        if self.layer_types is None:
            return [layer % 2 == 1 for layer in range(self.num_hidden_layers)]
        return [kind == FULL for kind in self.layer_types]


class GptOss(Architecture[GptOssFields]):
    """A model with attention sinks and clamped experts with biases, local and global layers in turn."""

    model_type = "gpt_oss"
    class_name = "GptOssForCausalLM"
    fields_class = GptOssFields
    attention_kind = "gqa"
    router_kinds = ("top_k",)
    has_local_layers = True

    def to_fields(self, config: ModelConfig, common: Mapping[str, Any]) -> GptOssFields:
        moe, _ = experts_and_router(config)
        windows = [attention.model_dump()["window"] for attention in config.layer_attentions()]
        return GptOssFields.model_validate(
            {
                **common,
                **grouped_query_fields(config),
                "attention_bias": config.attention.model_dump()["bias"] == "all",
                "intermediate_size": moe.hidden_dim,
                "num_local_experts": moe.num_experts,
                "num_experts_per_tok": moe.top_k,
                "sliding_window": next((window for window in windows if window is not None), UNUSED_WINDOW),
                "layer_types": [FULL if window is None else SLIDING for window in windows],
            }
        )

    def to_model(self, fields: GptOssFields) -> dict[str, Any]:
        options = {"bias": fields.bias, "sinks": True}
        full = grouped_query_section(fields, **options)
        local = grouped_query_section(fields, **options, window=fields.sliding_window)
        every = global_every(fields.is_full)
        is_mixed = any(fields.is_full) and not all(fields.is_full)
        return {
            "hidden_dim": fields.intermediate_size,
            "attention": full if all(fields.is_full) else local,
            "global_attention": {"every": every, "attention": full} if is_mixed else None,
            "moe": {
                "num_experts": fields.num_local_experts,
                "top_k": fields.num_experts_per_tok,
                "hidden_dim": fields.intermediate_size,
                "expert_bias": True,
                "activation": "clamped_swiglu",
                "router": {"kind": "top_k", "score": "softmax", "normalize": True, "bias": True},
            },
        }

    def rules(self, fields: GptOssFields) -> Iterator[Rule]:
        yield from outer_rules(fields)
        for layer in range(fields.num_hidden_layers):
            yield from grouped_query_rules(layer, fields, bias=fields.bias)
            yield Rule(f"blocks.{layer}.attention.sinks_H", (f"model.layers.{layer}.self_attn.sinks",))
            ours, theirs = f"blocks.{layer}.feed_forward", f"model.layers.{layer}.mlp"
            for name in ("weight", "bias"):
                yield Rule(f"{ours}.router.{name}", (f"{theirs}.router.{name}",))
            # Input dimension first there too.
            weight, bias = (f"{theirs}.experts.{name}" for name in GATE_UP)
            yield Rule(f"{ours}.experts.gate_up_weight_E2FD", (weight + GATE, weight + UP), GateAndUp())
            yield Rule(f"{ours}.experts.gate_bias_EF", (bias + GATE,))
            yield Rule(f"{ours}.experts.up_bias_EF", (bias + UP,))
            yield Rule(f"{ours}.experts.down_weight_EFD", (f"{theirs}.experts.down_proj",))
            yield Rule(f"{ours}.experts.down_bias_ED", (f"{theirs}.experts.down_proj_bias",))

    def unpacked(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        apart: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            if name.endswith(GATE_UP):
                apart[name + GATE], apart[name + UP] = tensor[..., ::2], tensor[..., 1::2]
            else:
                apart[name] = tensor
        return apart

    def packed(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        gate: Tensor | None = None
        for name, tensor in tensors:
            if name.endswith(GATE):
                gate = tensor
            elif name.endswith(UP):
                assert gate is not None, "rules() has the gate before the up projection"
                yield name.removesuffix(UP), torch.stack([gate, tensor], dim=-1).flatten(-2)
            else:
                yield name, tensor
