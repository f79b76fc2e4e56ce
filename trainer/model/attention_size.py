"""Parameters, FLOPs and kept activations of one attention layer in closed form. Torch-free.

Letters: D model dim, H query heads, G key-value heads, h head dim, W window, L sequence length, a bytes of a matmul
operand (4, or 2 in bf16 autocast).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from trainer.config.attention import AttentionConfig, GroupedQueryAttentionConfig


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
    """
    return _PARAMETERS[config.kind](config, dim)


def mixing_flops(config: AttentionConfig, *, seq_len: int) -> float:
    """Returns the forward FLOPs per token besides the projections, a multiply-add counting as two.

    - gqa: 4*H*h per visible position, for the score and the weighted value; a position sees (L+1)/2 positions on
      average, W - W*(W-1)/(2L) within a window W <= L.
    """
    return _MIXING_FLOPS[config.kind](config, seq_len)


def attention_activation_bytes(config: AttentionConfig, *, dim: int, seq_len: int, operand: int) -> int:
    """Returns the bytes one token keeps in one layer for the backward pass, the layer's normalised input excepted.

    - gqa: queries, keys, values and result a*(2H + 2G)*h, the softmax' normaliser 4H; with QK-norm 4*(H + G)*h more.
      A window W < L or sinks: the result once more as it is joined or cut, a*H*h. A window: keys and values twice as
      blocks, 4*a*G*h, with sinks instead of the plain ones, 2*a*G*h. Sinks: one feature more, a*(2H + 2G).
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


# One entry per kind; tests/contracts checks that none is missing.
_PARAMETERS: dict[str, Callable[[Any, int], AttentionParameters]] = {"gqa": _gqa_parameters}
_MIXING_FLOPS: dict[str, Callable[[Any, int], float]] = {"gqa": _gqa_mixing_flops}
_ACTIVATION_BYTES: dict[str, Callable[[Any, int, int, int], int]] = {"gqa": _gqa_activation_bytes}
