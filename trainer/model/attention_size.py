"""Parameters, FLOPs and kept activations of one attention layer in closed form. Torch-free.

Letters: D model dim, H query heads, G key-value heads, h head dim, W window, L sequence length, a bytes of a matmul
operand (4, or 2 in bf16 autocast). In latent attention: c and q the ranks of the key-value and the query latent, n and
r the features of a query without and with position, v those of a value.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from trainer.config.attention import (
    AttentionConfig,
    GroupedQueryAttentionConfig,
    MultiHeadLatentAttentionConfig,
)


class AttentionParameters(NamedTuple):
    """Numbers of parameters of one layer.

    matrices: weights that every token is multiplied with, the projections.
    vectors: norm gains, biases, sinks.
    """

    matrices: int
    vectors: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.matrices + self.vectors


def attention_parameters(config: AttentionConfig, *, dim: int) -> AttentionParameters:
    """Returns the parameters of one layer, equal to those of the built one.

    - gqa: D*h*(2H + 2G); with QK-norm 2h per head or (H + G)*h over all, biases (H + 2G)*h + D, sinks H.
    - mla: D*(c + r) + c*H*(n + v) + H*v*D, for the queries D*H*(n + r) or D*q + q*H*(n + r); norms c and q.
    """
    return _PARAMETERS[config.kind](config, dim)


def mixing_flops(config: AttentionConfig, *, seq_len: int) -> float:
    """Returns the forward FLOPs per token besides the projections, a multiply-add counting as two.

    - gqa: 4*H*h per visible position, for the score and the weighted value; a position sees (L+1)/2 positions on
      average, W - W*(W-1)/(2L) within a window W <= L.
    - mla: 2*H*(n + r + v) per visible position.
    """
    return _MIXING_FLOPS[config.kind](config, seq_len)


def attention_activation_bytes(config: AttentionConfig, *, dim: int, seq_len: int, operand: int) -> int:
    """Returns the bytes one token keeps in one layer for the backward pass, the layer's normalised input excepted.

    - gqa: queries, keys, values and result a*(2H + 2G)*h, the softmax' normaliser 4H; with QK-norm 4*(H + G)*h more.
      A window W < L or sinks: the result once more as it is joined or cut, a*H*h. A window: keys and values twice as
      blocks, 4*a*G*h, with sinks instead of the plain ones, 2*a*G*h. Sinks: one feature more, a*(2H + 2G).
    - mla: queries, keys, values and result as wide as the wider of n + r and v, 4*a*H*max(n + r, v), and the result cut
      to v; each latent normalised and as an operand (4 + a)*c; 4H.
    In bf16 autocast each projection of the input keeps its own cast of it; three of them are counted by the layer.
    """
    return _ACTIVATION_BYTES[config.kind](config, dim, seq_len, operand)


def visible_positions(seq_len: int, window: int | None = None) -> float:
    """Returns how many positions a position sees on average, itself included."""
    if window is None or window >= seq_len:
        return (seq_len + 1) / 2
    return window - window * (window - 1) / (2 * seq_len)


def _gqa_parameters(config: GroupedQueryAttentionConfig, dim: int) -> AttentionParameters:
    width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    vectors = 0
    if config.qk_norm:
        vectors += 2 * config.head_dim if config.qk_norm_over == "head" else width + kv_width
    if config.bias != "none":
        vectors += width + 2 * kv_width
    if config.bias == "all":
        vectors += dim
    if config.sinks:
        vectors += config.num_heads
    return AttentionParameters(matrices=2 * dim * (width + kv_width), vectors=vectors)


def _gqa_mixing_flops(config: GroupedQueryAttentionConfig, seq_len: int) -> float:
    return 4 * config.num_heads * config.head_dim * visible_positions(seq_len, config.window)


def _gqa_activation_bytes(config: GroupedQueryAttentionConfig, dim: int, seq_len: int, operand: int) -> int:
    width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    kept = 2 * operand * (width + kv_width) + 4 * config.num_heads
    if config.qk_norm:
        kept += 4 * (width + kv_width)
    windowed = config.window is not None and config.window < seq_len
    if windowed or config.sinks:
        kept += operand * width
    if windowed:
        kept += operand * (2 if config.sinks else 4) * kv_width
    if config.sinks:
        kept += 2 * operand * (config.num_heads + config.num_kv_heads)
    return kept


def _mla_parameters(config: MultiHeadLatentAttentionConfig, dim: int) -> AttentionParameters:
    query_width = config.num_heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
    rank = config.q_lora_rank
    query = dim * query_width if rank is None else (dim + query_width) * rank
    down = dim * (config.kv_lora_rank + config.qk_rope_head_dim)
    up = config.kv_lora_rank * config.num_heads * (config.qk_nope_head_dim + config.v_head_dim)
    out = config.num_heads * config.v_head_dim * dim
    return AttentionParameters(matrices=query + down + up + out, vectors=config.kv_lora_rank + (rank or 0))


def _mla_mixing_flops(config: MultiHeadLatentAttentionConfig, seq_len: int) -> float:
    features = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    return 2 * config.num_heads * features * visible_positions(seq_len)


def _mla_activation_bytes(config: MultiHeadLatentAttentionConfig, dim: int, seq_len: int, operand: int) -> int:
    query_width = config.qk_nope_head_dim + config.qk_rope_head_dim
    kept = 4 * operand * config.num_heads * max(query_width, config.v_head_dim) + 4 * config.num_heads
    if query_width > config.v_head_dim:
        kept += operand * config.num_heads * config.v_head_dim
    else:  # the values are a view of what the latent was expanded to
        kept += operand * config.num_heads * config.qk_nope_head_dim
    kept += (4 + operand) * (config.kv_lora_rank + (config.q_lora_rank or 0))
    return kept + _input_casts(2, dim, operand)


def _input_casts(num_projections: int, dim: int, operand: int) -> int:
    """Returns the bytes of the casts of the input for more, or fewer, projections than queries, keys and values."""
    return (num_projections - 3) * 2 * dim if operand == 2 else 0


# One entry per kind; tests/contracts checks that none is missing.
_PARAMETERS: dict[str, Callable[[Any, int], AttentionParameters]] = {
    "gqa": _gqa_parameters,
    "mla": _mla_parameters,
}
_MIXING_FLOPS: dict[str, Callable[[Any, int], float]] = {
    "gqa": _gqa_mixing_flops,
    "mla": _mla_mixing_flops,
}
_ACTIVATION_BYTES: dict[str, Callable[[Any, int, int, int], int]] = {
    "gqa": _gqa_activation_bytes,
    "mla": _mla_activation_bytes,
}
