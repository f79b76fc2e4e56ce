"""What the architectures share: the decoder around the layers, grouped-query attention, MLPs and experts.

Each function yields the rules of its part; `layer` counts from 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from trainer.config.attention import GroupedQueryAttentionConfig
from trainer.config.model import ModelConfig, MoEConfig
from trainer.config.routers import LearnedRouterSection
from trainer.interop.fields import GroupedQueryFields, HuggingFaceFields, SparseLayersFields
from trainer.interop.layout import GateUpPerExpert, PerExpert, RotaryHalves, Rule, Same
from trainer.interop.pattern import expert_pattern


@dataclass(frozen=True)
class ExpertNames:
    """What an architecture's checkpoints call the mixture-of-experts part of a layer and the matrices of an expert."""

    layer: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


QWEN_NAMES = ExpertNames()
"""Those of Qwen, which OLMoE and DeepSeek share."""


def outer_rules(fields: HuggingFaceFields) -> Iterator[Rule]:
    """Yields the embedding, the norms and the output projection."""
    yield Rule("embedding.weight", ("model.embed_tokens.weight",))
    yield Rule("final_norm.gain", ("model.norm.weight",))
    if not fields.tie_word_embeddings:
        yield Rule("head.weight", ("lm_head.weight",))
    for layer in range(fields.num_hidden_layers):
        yield Rule(f"blocks.{layer}.attention_norm.gain", (f"model.layers.{layer}.input_layernorm.weight",))
        yield Rule(f"blocks.{layer}.feed_forward_norm.gain", (f"model.layers.{layer}.post_attention_layernorm.weight",))


def grouped_query_rules(
    layer: int,
    fields: GroupedQueryFields,
    *,
    bias: Literal["none", "qkv", "all"] = "none",
    qk_norm_over: Literal["head", "all_heads"] | None = None,
) -> Iterator[Rule]:
    """Yields the projections of a layer's attention and the norms of its queries and keys.

    Args:
        layer: which.
        fields: of the model.
        bias: which projections have one.
        qk_norm_over: what a norm covers; None without norms.
    """
    ours, theirs = f"blocks.{layer}.attention", f"model.layers.{layer}.self_attn"
    projections = {
        "query": ("q", RotaryHalves(fields.num_attention_heads)),
        "key": ("k", RotaryHalves(fields.num_kv_heads)),
        "value": ("v", Same()),
        "out": ("o", Same()),
    }
    for name, (letter, layout) in projections.items():
        yield Rule(f"{ours}.{name}.weight", (f"{theirs}.{letter}_proj.weight",), layout)
        if bias == "all" or (bias == "qkv" and name != "out"):
            yield Rule(f"{ours}.{name}.bias", (f"{theirs}.{letter}_proj.bias",), layout)
    if qk_norm_over is not None:
        for name in ("query", "key"):
            letter, over_all_heads = projections[name]
            gain = over_all_heads if qk_norm_over == "all_heads" else RotaryHalves(1)
            yield Rule(f"{ours}.{name}_norm.gain", (f"{theirs}.{letter}_norm.weight",), gain)


def sparse_layer_fields(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields of Qwen's models that tell the dense layers and the experts."""
    moe, router = experts_and_router(config)
    return {
        "intermediate_size": config.hidden_dim,
        "moe_intermediate_size": moe.hidden_dim,
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "norm_topk_prob": router.normalize,
        "mlp_only_layers": [layer for layer, kind in enumerate(config.layer_kinds()) if kind == "dense"],
    }


def sparse_layer_section(fields: SparseLayersFields, **further: Any) -> dict[str, Any]:
    """Returns the moe section of a model; `further` are the options that an architecture has besides."""
    pattern = expert_pattern(fields.layer_is_dense)
    assert pattern is not None, "the fields are validated"
    return {
        "num_experts": fields.num_experts,
        "top_k": fields.num_experts_per_tok,
        "hidden_dim": fields.moe_intermediate_size,
        "num_dense_layers": pattern.num_dense_layers,
        "every": pattern.every,
        "router": {"kind": "top_k", "score": "softmax", "normalize": fields.norm_topk_prob},
        **further,
    }


def mlp_rules(ours: str, theirs: str) -> Iterator[Rule]:
    """Yields a dense or shared SwiGLU network."""
    for name in ("gate", "up", "down"):
        yield Rule(f"{ours}.{name}.weight", (f"{theirs}.{name}_proj.weight",))


def shared_rules(ours: str, theirs: str, *, num_shared: int, dim: int) -> Iterator[Rule]:
    """Yields DeepSeek's shared experts. Without any, their models still have the matrices, of width 0."""
    if num_shared:
        yield from mlp_rules(ours, theirs)
        return
    for name, shape in {"gate": (0, dim), "up": (0, dim), "down": (dim, 0)}.items():
        yield Rule(f"{ours}.{name}.weight", (f"{theirs}.{name}_proj.weight",), absent=shape)


def expert_rules(layer: int, *, num_experts: int, names: ExpertNames = QWEN_NAMES) -> Iterator[Rule]:
    """Yields the router and the routed experts of a layer."""
    ours, theirs = f"blocks.{layer}.feed_forward", f"model.layers.{layer}.{names.layer}"
    yield Rule(f"{ours}.router.weight", (f"{theirs}.gate.weight",))
    experts = [f"{theirs}.experts.{expert}" for expert in range(num_experts)]
    yield Rule(
        f"{ours}.experts.gate_up_weight_E2FD",
        tuple(f"{expert}.{matrix}.weight" for expert in experts for matrix in (names.gate, names.up)),
        GateUpPerExpert(),
    )
    yield Rule(
        f"{ours}.experts.down_weight_EFD", tuple(f"{expert}.{names.down}.weight" for expert in experts), PerExpert()
    )


def grouped_query(config: ModelConfig) -> GroupedQueryAttentionConfig:
    """Returns the attention of a model that is known to have grouped queries in every layer."""
    assert isinstance(config.attention, GroupedQueryAttentionConfig), "Architecture.obstacles has seen to it"
    return config.attention


def grouped_query_fields(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields that tell the heads and the positions."""
    attention = grouped_query(config)
    return {
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "rope_parameters": {"rope_theta": attention.rope_theta},
    }


def grouped_query_section(fields: GroupedQueryFields, **further: Any) -> dict[str, Any]:
    """Returns the attention section of a model; `further` are the options that an architecture has besides."""
    return {
        "kind": "gqa",
        "num_heads": fields.num_attention_heads,
        "num_kv_heads": fields.num_kv_heads,
        "head_dim": fields.head_width,
        "rope_theta": fields.rope_parameters.rope_theta,
        **further,
    }


def experts_and_router(config: ModelConfig) -> tuple[MoEConfig, LearnedRouterSection]:
    """Returns the experts and the router of a model that is known to have a learned one."""
    assert config.moe is not None, "Architecture.obstacles has seen to it"
    assert isinstance(config.moe.router, LearnedRouterSection), "Architecture.obstacles has seen to it"
    return config.moe, config.moe.router
