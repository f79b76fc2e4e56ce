"""The parameters of the model that a config asks for: names, roles and shapes, without building it.

Letters: D model dim, F hidden dim of an MLP, E experts, H heads, h head dim.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from trainer.config.attention import (
    GatedDeltaNetConfig,
    GroupedQueryAttentionConfig,
    KimiDeltaAttentionConfig,
    MultiHeadLatentAttentionConfig,
    NativeSparseAttentionConfig,
)
from trainer.config.model import ModelConfig, MoEConfig
from trainer.config.optimizers import ParameterRole
from trainer.config.routers import LearnedRouterSection

Shapes = dict[str, tuple[int, ...]]


class ParameterShape(NamedTuple):
    """What an optimizer sees of a parameter before there is one."""

    role: ParameterRole
    shape: tuple[int, ...]


def model_parameters(config: ModelConfig) -> dict[str, ParameterShape]:
    """Returns every parameter of a model of this config by its name; a tied embedding once."""
    table = ParameterShape("embedding", (config.vocab_size, config.dim))
    parameters = {"embedding.weight": table}
    if not config.tie_embeddings:
        parameters["head.weight"] = table
    parameters["final_norm.gain"] = ParameterShape("dense", (config.dim,))
    # Layers differ in little but their number: of many hundred there are two or three kinds.
    blocks: dict[tuple[str, int], dict[str, ParameterShape]] = {}
    for layer, (kind, attention) in enumerate(zip(config.layer_kinds(), config.layer_attentions(), strict=True)):
        key = kind, id(attention)
        if key not in blocks:
            blocks[key] = _block(config, kind, _ATTENTION[attention.kind](attention, config.dim))
        parameters.update((f"blocks.{layer}.{name}", parameter) for name, parameter in blocks[key].items())
    return parameters


def _block(config: ModelConfig, kind: str, attention: Shapes) -> dict[str, ParameterShape]:
    """Returns the parameters of one layer by their names in it."""
    dense: Shapes = {f"{norm}.gain": (config.dim,) for norm in ("attention_norm", "feed_forward_norm")}
    dense |= _under("attention", attention)
    by_role: dict[ParameterRole, Shapes] = {"dense": _mlp(config.dim, config.hidden_dim)}
    if kind == "moe":
        assert config.moe is not None, "ModelConfig.layer_kinds names MoE layers only when there is a MoEConfig"
        by_role = _moe(config.moe, config.dim)
    parameters = {name: ParameterShape("dense", shape) for name, shape in dense.items()}
    for role, shapes in by_role.items():
        named = _under("feed_forward", shapes)
        parameters |= {name: ParameterShape(role, shape) for name, shape in named.items()}
    return parameters


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def _mlp(dim: int, hidden_dim: int) -> Shapes:
    return {"gate.weight": (hidden_dim, dim), "up.weight": (hidden_dim, dim), "down.weight": (dim, hidden_dim)}


def _moe(moe: MoEConfig, dim: int) -> dict[ParameterRole, Shapes]:
    """Returns the parameters of a mixture-of-experts layer by role."""
    num_experts, hidden_dim = moe.num_experts, moe.hidden_dim
    expert: Shapes = {
        "gate_up_weight_E2FD": (num_experts, 2, hidden_dim, dim),
        "down_weight_EFD": (num_experts, hidden_dim, dim),
    }
    if moe.expert_bias:
        expert |= {
            "gate_bias_EF": (num_experts, hidden_dim),
            "up_bias_EF": (num_experts, hidden_dim),
            "down_bias_ED": (num_experts, dim),
        }
    dense: Shapes = {}
    if moe.num_shared_experts:
        dense |= _under("shared", _mlp(dim, moe.num_shared_experts * hidden_dim))
    if moe.shared_gate:
        dense["shared_gate.weight"] = (1, dim)
    if moe.output_scale is not None and moe.output_scale.learned:
        dense["output_scale"] = (1,)
    return {"dense": dense, "router": _under("router", _router(moe, dim)), "expert": _under("experts", expert)}


def _router(moe: MoEConfig, dim: int) -> Shapes:
    if not isinstance(moe.router, LearnedRouterSection):
        return {}
    shapes: Shapes = {"weight": (moe.num_router_outputs, dim)}
    if moe.router.bias:
        shapes["bias"] = (moe.num_router_outputs,)
    if moe.router.kind == "expert_choice" and moe.router.predictor:
        shapes |= {"predictor_weight": (moe.num_router_outputs, dim), "predictor_bias": (moe.num_router_outputs,)}
    return shapes


def _gqa(config: GroupedQueryAttentionConfig, dim: int) -> Shapes:
    widths = {"query": config.num_heads * config.head_dim}
    widths |= dict.fromkeys(("key", "value"), config.num_kv_heads * config.head_dim)
    shapes: Shapes = {f"{name}.weight": (width, dim) for name, width in widths.items()}
    shapes["out.weight"] = (dim, widths["query"])
    if config.bias != "none":
        shapes |= {f"{name}.bias": (width,) for name, width in widths.items()}
    if config.bias == "all":
        shapes["out.bias"] = (dim,)
    if config.sinks:
        shapes["sinks_H"] = (config.num_heads,)
    if config.qk_norm:
        is_per_head = config.qk_norm_over == "head"
        shapes |= {
            f"{name}_norm.gain": (config.head_dim if is_per_head else widths[name],) for name in ("query", "key")
        }
    return shapes


def _mla(config: MultiHeadLatentAttentionConfig, dim: int) -> Shapes:
    rank, latent, heads = config.q_lora_rank, config.kv_lora_rank, config.num_heads
    query_width = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
    query: Shapes = {"query.weight": (query_width, dim)}
    if rank is not None:
        query = {"query.down.weight": (rank, dim), "query.norm.gain": (rank,), "query.up.weight": (query_width, rank)}
    return query | {
        "kv_down.weight": (latent + config.qk_rope_head_dim, dim),
        "kv_norm.gain": (latent,),
        "kv_up.weight": (heads * (config.qk_nope_head_dim + config.v_head_dim), latent),
        "out.weight": (dim, heads * config.v_head_dim),
    }


def _delta_rule(dim: int, *, num_heads: int, head_dim: int, v_head_dim: int, conv_size: int) -> Shapes:
    """Returns what Kimi delta attention and gated DeltaNet have in common."""
    widths = {"query": num_heads * head_dim, "key": num_heads * head_dim, "value": num_heads * v_head_dim}
    shapes: Shapes = {f"{name}.weight": (width, dim) for name, width in widths.items()}
    shapes |= {f"{name}_conv.weight_C1W": (width, 1, conv_size) for name, width in widths.items()}
    return shapes | {
        "decay.log_rate_H": (num_heads,),
        "strength.weight": (num_heads, dim),
        "norm.gain": (v_head_dim,),
        "out.weight": (dim, widths["value"]),
    }


def _kda(config: KimiDeltaAttentionConfig, dim: int) -> Shapes:
    heads, size = config.num_heads, config.head_dim
    low_rank: Shapes = {}
    for name in ("decay", "gate"):
        low_rank |= {f"{name}_down.weight": (size, dim), f"{name}_up.weight": (heads * size, size)}
    common = _delta_rule(dim, num_heads=heads, head_dim=size, v_head_dim=size, conv_size=config.conv_size)
    return common | low_rank | {"decay.bias": (heads * size,)}


def _gdn(config: GatedDeltaNetConfig, dim: int) -> Shapes:
    heads = config.num_heads
    common = _delta_rule(
        dim,
        num_heads=heads,
        head_dim=config.head_dim,
        v_head_dim=config.v_head_dim,
        conv_size=config.conv_size,
    )
    return common | {
        "decay_in.weight": (heads, dim),
        "decay.bias": (heads,),
        "gate.weight": (heads * config.v_head_dim, dim),
    }


def _nsa(config: NativeSparseAttentionConfig, dim: int) -> Shapes:
    width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    size = config.head_dim
    compression: Shapes = {}
    for name in ("compress_key", "compress_value"):
        compression |= {
            f"{name}.inner.weight": (size, config.compression_block_size * size),
            f"{name}.inner.bias": (size,),
            f"{name}.outer.weight": (size, size),
        }
    return compression | {
        "query.weight": (width, dim),
        "key.weight": (3 * kv_width, dim),
        "value.weight": (3 * kv_width, dim),
        "gate.weight": (3 * config.num_heads, dim),
        "out.weight": (dim, width),
    }


# One entry per kind; tests/contracts checks that none is missing.
_ATTENTION: dict[str, Callable[[Any, int], Shapes]] = {
    "gdn": _gdn,
    "gqa": _gqa,
    "kda": _kda,
    "mla": _mla,
    "nsa": _nsa,
}
