"""Parameters, FLOPs and memory of a model in closed form. Torch-free, so that a spec is sized before anything runs.

Letters: D model dim, F hidden dim of an MLP, E experts, K experts per token, S shared experts, H query heads, G
key-value heads, h head dim, V vocabulary, L sequence length.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from trainer.config.model import ModelConfig, MoEConfig
from trainer.config.precision import QuantizedExpertsSection
from trainer.config.routers import LearnedRouterSection
from trainer.config.train import TrainConfig
from trainer.config.trained import trained_parameters
from trainer.model.attention_size import (
    attention_activation_bytes,
    attention_parameters,
    document_mask_bytes,
    mixing_flops,
)
from trainer.model.optimizer_size import optimizer_values

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Numbers of parameters. Papers mean three different things by "active"; all three are here.

    Attributes:
        total: all parameters; a tied embedding counts once.
        active: those a token passes through: `total` without the routed experts it did not choose. Where that differs
            between tokens, on average; with null experts or a capacity the most, those of top_k experts, since how many
            a token goes without is learned.
        active_minus_input_embedding: `active` without the table that is only looked up. With tied embeddings nothing
            is subtracted: the table also is the output projection, which every token passes through.
        non_embedding_total, non_embedding_active: without the embedding and without the output projection.
    """

    total: int
    active: int
    active_minus_input_embedding: int
    non_embedding_total: int
    non_embedding_active: int


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Device memory of one worker at its peak, in GiB. See `memory_estimate` for what each part counts."""

    weights_gib: float
    gradients_gib: float
    optimizer_gib: float
    activations_gib: float
    logits_gib: float
    total_gib: float


def model_size(config: ModelConfig) -> ModelSize:
    """Returns the number of parameters of a model of this config, equal to what `build_model` makes.

    Attention as in `trainer.model.attention_size`; gated MLP 3*D*F, with biases 2*F + D more; router D*E, with biases E
    more, with a predictor of expert choice D*E + E more; gate of the shared experts D; learned output scale 1; two
    norms of D per layer and one at the end; embedding V*D, twice when not tied. Buffers, such as the selection bias,
    are no parameters.
    """
    table = config.vocab_size * config.dim
    tables = table if config.tie_embeddings else 2 * table
    non_embedding = config.dim + sum(
        attention_parameters(attention, dim=config.dim).total
        + 2 * config.dim
        + _feed_forward_parameters(config, kind, active=False).total
        for kind, attention in zip(config.layer_kinds(), config.layer_attentions(), strict=True)
    )
    unchosen = sum(
        _feed_forward_parameters(config, kind, active=False).total
        - _feed_forward_parameters(config, kind, active=True).total
        for kind in config.layer_kinds()
    )
    total = tables + non_embedding
    return ModelSize(
        total=total,
        active=total - unchosen,
        active_minus_input_embedding=total - unchosen - (0 if config.tie_embeddings else table),
        non_embedding_total=non_embedding,
        non_embedding_active=non_embedding - unchosen,
    )


def flops_per_token(config: ModelConfig, *, seq_len: int) -> float:
    """Returns the training FLOPs per token at this sequence length, a multiply-add counting as two.

    Forward, per token: 2 for each weight of a matrix the token passes through (attention projections, the MLPs it
    visits, router, output projection; no embedding lookup, no norms), and in each layer what attention does besides
    its projections (`trainer.model.attention_size.mixing_flops`), for causal attention 2*H*h*(L+1). The backward pass
    costs twice the forward pass, hence times 3. Recomputation is not counted.
    """
    matrices = config.vocab_size * config.dim + sum(
        attention_parameters(attention, dim=config.dim).matrices
        + _feed_forward_parameters(config, kind, active=True).matrices
        for kind, attention in zip(config.layer_kinds(), config.layer_attentions(), strict=True)
    )
    mixing = sum(mixing_flops(attention, seq_len=seq_len) for attention in config.layer_attentions())
    return 3.0 * (2.0 * matrices + mixing)


def memory_estimate(config: TrainConfig) -> MemoryEstimate:
    """Returns what one worker needs, every worker holding the whole model.

    - weights and gradients: 4 bytes per parameter each, a gradient for the trained ones alone; in bf16 autocast 2 more
      per weight for the cast copies, the embedding's excepted. A precision of the experts' matmuls keeps no copies: it
      casts their operands, whole matrices of float32 numbers where it is emulated, for each matmul anew, and keeps what
      its `rest` keeps.
    - optimizer: 4 bytes per value of `trainer.model.optimizer_size`.
    - activations: what the forward pass of one micro-batch keeps for the backward pass. In units per token and layer,
      a the bytes of a matmul operand (4, or 2 in bf16 autocast):
      two norms 2 * 4D, and their outputs 2 * 4D (in bf16 autocast the casts of them instead: 2D for each of query,
      key, value, gate and up, and 4D where a router reads the output itself);
      attention as in `trainer.model.attention_size`, grouped queries a*(2H + 2G)*h + 4H;
      dense MLP 4*a*F; mixture of experts a*K*(2D + 3F) + 4*a*S*F + 12*E + 36*K; where MLPs or experts have another
      activation than SwiGLU, its number of kept features instead of the 4 or 3; a gate of the shared experts a*D + 8
      (in bf16 2D more for its own cast of the input).
      Once per model 4 * 4D for the final norm, its output and the gradient of both.
      2 to 4 % above the bytes autograd was measured to keep, in both precisions (D=128, 4 layers, 256 and 2048 tokens).
    - logits: two chunks of the output projection (see `head_chunk_tokens`) and the gradient of its weight, 4*V*D.

    Left out: temporaries inside an operation, the allocator's rounding, and the process itself (torch and its
    libraries, about 0.3 GiB on a CPU).
    """
    model = config.model
    num_parameters = model_size(model).total
    num_trained = sum(math.prod(shape) for _, shape in trained_parameters(model, config.trained).values())
    num_tokens = config.loop.micro_batch_size * config.data.seq_len
    precision = config.precision
    operand = _OPERAND_BYTES[precision.rest if isinstance(precision, QuantizedExpertsSection) else precision.kind]
    cast_copies = 2 * _autocast_parameters(config) if operand == 2 else 0
    activations = num_tokens * (
        16 * model.dim
        + sum(
            _layer_activation_bytes(model, kind, operand)
            + attention_activation_bytes(attention, dim=model.dim, seq_len=config.data.seq_len, operand=operand)
            for kind, attention in zip(model.layer_kinds(), model.layer_attentions(), strict=True)
        )
    )
    if config.data.document_masking:
        activations += num_tokens * document_mask_bytes(
            model.layer_attentions(), seq_len=config.data.seq_len, operand=operand
        )
    chunk_tokens = min(num_tokens, head_chunk_tokens(model.vocab_size, device_type="cuda"))
    parts = {
        "weights_gib": (4 * num_parameters + cast_copies) / _GIB,
        "gradients_gib": 4 * num_trained / _GIB,
        "optimizer_gib": 4 * optimizer_values(config.optimizer, model, config.trained) / _GIB,
        "activations_gib": activations / _GIB,
        "logits_gib": (2 * 4 * chunk_tokens + 4 * model.dim) * model.vocab_size / _GIB,
    }
    return MemoryEstimate(**parts, total_gib=sum(parts.values()))


def head_chunk_tokens(vocab_size: int, *, device_type: str) -> int:
    """Returns the tokens whose logits exist at once when the loss is computed (`trainer.model.cross_entropy`).

    2**20 logits on a CPU, 4 MiB, about a core's cache; 2**26 elsewhere, where launches must be few and large; and
    never fewer than 64 tokens, so that the weight's gradient is not added up in too many passes.
    """
    return max((2**20 if device_type == "cpu" else 2**26) // vocab_size, 64)


def _autocast_parameters(config: TrainConfig) -> int:
    """Returns the parameters that bf16 autocast copies."""
    model = config.model
    size = model_size(model).non_embedding_total
    if not isinstance(config.precision, QuantizedExpertsSection):
        return size
    moe, num_layers = _moe(model), model.layer_kinds().count("moe")
    return size - num_layers * moe.num_experts * _expert_parameters(model.dim, moe).matrices


class _Parameters(NamedTuple):
    """matrices: weights that every token is multiplied with; vectors: biases and scales."""

    matrices: int
    vectors: int = 0

    @property
    def total(self) -> int:
        return self.matrices + self.vectors


def _feed_forward_parameters(config: ModelConfig, kind: str, *, active: bool) -> _Parameters:
    """Returns the parameters of a layer's MLPs and router, of the experts only the chosen ones if `active`."""
    if kind == "dense":
        return _Parameters(3 * config.dim * config.hidden_dim)
    moe = _moe(config)
    router, expert = _router_parameters(config.dim, moe), _expert_parameters(config.dim, moe)
    num_routed = moe.router.experts_per_token(moe.top_k) if active else moe.num_experts
    shared = moe.num_shared_experts * expert.matrices + (config.dim if moe.shared_gate else 0)
    scale = 1 if moe.output_scale is not None and moe.output_scale.learned else 0
    return _Parameters(
        matrices=router.matrices + round(num_routed * expert.matrices) + shared,
        vectors=router.vectors + round(num_routed * expert.vectors) + scale,
    )


def _router_parameters(dim: int, moe: MoEConfig) -> _Parameters:
    biases = int(isinstance(moe.router, LearnedRouterSection) and moe.router.bias) + int(_has_predictor(moe))
    return _Parameters(_ROUTER_PARAMETERS[moe.router.kind](dim, moe), biases * moe.num_router_outputs)


def _has_predictor(moe: MoEConfig) -> bool:
    return moe.router.kind == "expert_choice" and moe.router.predictor


def _expert_parameters(dim: int, moe: MoEConfig) -> _Parameters:
    """Returns the parameters of one routed expert."""
    return _Parameters(3 * dim * moe.hidden_dim, 2 * moe.hidden_dim + dim if moe.expert_bias else 0)


def _layer_activation_bytes(config: ModelConfig, kind: str, operand: int) -> int:
    """Returns the bytes one token keeps in one layer, those of its attention excepted."""
    norms = 8 * config.dim
    if kind == "dense":
        outputs = 8 * config.dim if operand == 4 else 2 * 5 * config.dim
        return norms + outputs + _KEPT_FEATURES[config.activation] * operand * config.hidden_dim
    moe = _moe(config)
    kept = operand * moe.hidden_dim
    outputs = 8 * config.dim if operand == 4 else (4 + 2 * (5 if moe.num_shared_experts else 3)) * config.dim
    pair = operand * 2 * config.dim + _KEPT_BY_EXPERTS[moe.activation] * kept + 36
    shared = moe.num_shared_experts * _KEPT_FEATURES[moe.activation] * kept
    if moe.shared_gate:
        shared += operand * config.dim + 8 + (2 * config.dim if operand == 2 else 0)
    routed = round(moe.router.experts_per_token(moe.top_k) * pair)
    return norms + outputs + routed + shared + (20 if _has_predictor(moe) else 12) * moe.num_router_outputs


def _moe(config: ModelConfig) -> MoEConfig:
    assert config.moe is not None, "ModelConfig.layer_kinds names MoE layers only when there is a MoEConfig"
    return config.moe


# One entry per kind of component; tests/contracts checks that none is missing.
_ROUTER_PARAMETERS: dict[str, Callable[[int, MoEConfig], int]] = {
    "expert_choice": lambda dim, moe: (2 if _has_predictor(moe) else 1) * dim * moe.num_experts,
    "group_limited": lambda dim, moe: dim * moe.num_experts,
    "hash": lambda dim, moe: 0,
    "random": lambda dim, moe: 0,
    "sinkhorn": lambda dim, moe: dim * moe.num_router_outputs,
    "top_k": lambda dim, moe: dim * moe.num_router_outputs,
}
_KEPT_FEATURES = {"swiglu": 4, "geglu": 4, "clamped_swiglu": 7}  # gate, up, what is made of them, and their product
_KEPT_BY_EXPERTS = _KEPT_FEATURES | {"swiglu": 3}  # silu(gate) is computed again
_OPERAND_BYTES = {"fp32": 4, "bf16_autocast": 2}  # of what matmuls keep; the experts' keep it before their own casts
