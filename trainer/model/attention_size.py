"""Parameters, FLOPs and kept activations of one attention layer in closed form. Torch-free.

Letters: D model dim, H query heads, G key-value heads, h head dim, W window, L sequence length, a bytes of a matmul
operand (4, or 2 in bf16 autocast). In latent attention: c and q the ranks of the key-value and the query latent, n and
r the features of a query without and with position, v those of a value. In the delta rule: e value head dim, S
positions of the short convolution, C those of a chunk. In sparse attention: l and s size and stride of the compressed
blocks, b size of the selected ones.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from trainer.config.attention import (
    AttentionConfig,
    GatedDeltaNetConfig,
    GroupedQueryAttentionConfig,
    KimiDeltaAttentionConfig,
    MultiHeadLatentAttentionConfig,
    NativeSparseAttentionConfig,
)

KDA_CHUNK = 16
"""Positions that Kimi delta attention works on at once: a decay per feature costs L * C * h within chunks. On a CPU
thread forward and backward take 50 ms at 16, 208 ms at 64, 198 ms position by position (B=4, L=256, 4 heads of 32)."""
GDN_CHUNK = 64
"""Positions that gated DeltaNet works on at once, as in its authors' implementation: 16 ms there, 20 ms at 16."""


class AttentionParameters(NamedTuple):
    """Numbers of parameters of one layer.

    matrices: weights that every token is multiplied with, the projections.
    vectors: norm gains, biases, sinks.
    block_matrices: weights that blocks of positions are multiplied with.
    """

    matrices: int
    vectors: int
    block_matrices: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.matrices + self.vectors + self.block_matrices


def attention_parameters(config: AttentionConfig, *, dim: int) -> AttentionParameters:
    """Returns the parameters of one layer, equal to those of the built one.

    - gqa: D*h*(2H + 2G); with QK-norm 2h per head or (H + G)*h over all, biases (H + 2G)*h + D, sinks H.
    - mla: D*(c + r) + c*H*(n + v) + H*v*D, for the queries D*H*(n + r) or D*q + q*H*(n + r); norms c and q.
    - kda: queries, keys, values and result 4*D*H*h, convolutions 3*H*h*S, decay and gate 2*(D + H*h)*h, strength D*H;
      decay H + H*h, norm h.
    - nsa: D*(2H*h + 6G*h + 3H); the compression of keys and of values 2*(l + 1)*h*h on blocks, with a bias 2h.
    - gdn: D*H*(2h + 3e), convolutions S*H*(2h + e), decay and strength 2*D*H; decay 2H, norm e.
    """
    return _PARAMETERS[config.kind](config, dim)


def mixing_flops(config: AttentionConfig, *, seq_len: int) -> float:
    """Returns the forward FLOPs per token besides the projections, a multiply-add counting as two.

    Those of a sequence that is one document: with documents kept apart positions see fewer, how many is the data's.

    - gqa: 4*H*h per visible position, for the score and the weighted value; a position sees (L+1)/2 positions on
      average, W - W*(W-1)/(2L) within a window W <= L.
    - mla: 2*H*(n + r + v) per visible position.
    - nsa: as gqa per position that is compressed and visible, selected and visible, or in the window; the compression
      4*G*(l + 1)*h*h every s positions. What the method needs: the form in torch computes all scores and hides some.
    - kda, gdn: H*(6*h*e + C*(3h + 2e)) at any length L >= C: three products with the memory, and of those within a
      chunk the causal half.
    """
    return _MIXING_FLOPS[config.kind](config, seq_len)


def attention_activation_bytes(config: AttentionConfig, *, dim: int, seq_len: int, operand: int) -> int:
    """Returns the bytes one token keeps in one layer for the backward pass, the layer's normalised input excepted.

    - gqa: queries, keys, values and result a*(2H + 2G)*h, the softmax' normaliser 4H; with QK-norm 4*(H + G)*h more.
      A window W < L or sinks: the result once more as it is joined or cut, a*H*h. A window: keys and values twice as
      blocks, 4*a*G*h, with sinks instead of the plain ones, 2*a*G*h. Sinks: one feature more, a*(2H + 2G).
    - mla: queries, keys, values and result as wide as the wider of n + r and v, 4*a*H*max(n + r, v), and the result cut
      to v; each latent normalised and as an operand (4 + a)*c; 4H.
    - kda, gdn: dominated by what the chunks keep in float32. kda: the decays between the positions of a chunk and the
      keys that faded by them, 4*2*C*H*h; gdn: six C x C tables per head, 4*6*C*H; the memory once per chunk 4*H*h*e/C.
      The other terms count the operands of each product, convolution and gate.
    - nsa: dominated by tables over pairs: which positions are selected a*H*L, how much each compressed block weighs
      (4 + a)*H*L/s. The other terms count the operands of the three branches.
    In bf16 autocast each projection of the input keeps its own cast of it; three of them are counted by the layer.
    """
    return _ACTIVATION_BYTES[config.kind](config, dim, seq_len, operand)


def document_mask_bytes(attentions: Sequence[AttentionConfig], *, seq_len: int, operand: int) -> int:
    """Returns the bytes one token keeps in all layers together when documents are kept apart.

    - gqa, mla, nsa: a mask that is added to the scores, one for all layers of the same window and sinks: a*L without a
      window, a*(2*W*(L - W) + W*W)/L with one.
    - kda, gdn: in every layer which positions of a chunk are of one document, as numbers and as truth values, 5*C.
    """
    windows: dict[tuple[int, bool], int] = {}
    tables = 0
    for attention in attentions:
        if isinstance(attention, KimiDeltaAttentionConfig):
            tables += 5 * min(KDA_CHUNK, seq_len)
        elif isinstance(attention, GatedDeltaNetConfig):
            tables += 5 * min(GDN_CHUNK, seq_len)
        else:
            window = None if isinstance(attention, MultiHeadLatentAttentionConfig) else attention.window
            sinks = isinstance(attention, GroupedQueryAttentionConfig) and attention.sinks
            seen = min(window or seq_len, seq_len)
            windows[seen, sinks] = operand * (2 * seen * (seq_len - seen) + seen * seen) // seq_len
    return sum(windows.values()) + tables


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


def _kda_parameters(config: KimiDeltaAttentionConfig, dim: int) -> AttentionParameters:
    width = config.num_heads * config.head_dim
    low_rank = 2 * (dim + width) * config.head_dim
    convolutions = 3 * width * config.conv_size
    return AttentionParameters(
        matrices=4 * dim * width + convolutions + low_rank + dim * config.num_heads,
        vectors=config.num_heads + width + config.head_dim,
    )


def _gdn_parameters(config: GatedDeltaNetConfig, dim: int) -> AttentionParameters:
    key_width, value_width = config.num_heads * config.head_dim, config.num_heads * config.v_head_dim
    convolutions = config.conv_size * (2 * key_width + value_width)
    return AttentionParameters(
        matrices=dim * (2 * key_width + 3 * value_width + 2 * config.num_heads) + convolutions,
        vectors=2 * config.num_heads + config.v_head_dim,
    )


def _delta_rule_flops(num_heads: int, key_dim: int, value_dim: int, chunk_size: int) -> int:
    return num_heads * (6 * key_dim * value_dim + chunk_size * (3 * key_dim + 2 * value_dim))


def _kda_activation_bytes(config: KimiDeltaAttentionConfig, dim: int, seq_len: int, operand: int) -> int:
    heads, width = config.num_heads, config.num_heads * config.head_dim
    convolutions = operand * 6 * width
    size = min(KDA_CHUNK, seq_len)
    chunk = 4 * (2 * size * (width + heads) + width * config.head_dim // size + 17 * width)
    chunk = chunk * _filled(seq_len, size) // seq_len
    gate = 4 * 4 * width + operand * (2 * width + 2 * config.head_dim)
    return convolutions + chunk + gate + _input_casts(6, dim, operand)


def _gdn_activation_bytes(config: GatedDeltaNetConfig, dim: int, seq_len: int, operand: int) -> int:
    heads, key, value = config.num_heads, config.num_heads * config.head_dim, config.num_heads * config.v_head_dim
    convolutions = operand * 2 * (2 * key + value)
    size = min(GDN_CHUNK, seq_len)
    copies = 12 if seq_len > size else 7  # more than one chunk are copied to be multiplied
    chunk = 4 * (6 * size * heads + key * config.v_head_dim // size + copies * key + 2 * value + 10 * heads)
    chunk = chunk * _filled(seq_len, size) // seq_len
    gate = 4 * 3 * value + operand * 3 * value
    return convolutions + chunk + gate + _input_casts(6, dim, operand)


def _nsa_parameters(config: NativeSparseAttentionConfig, dim: int) -> AttentionParameters:
    width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return AttentionParameters(
        matrices=dim * (2 * width + 6 * kv_width + 3 * config.num_heads),
        vectors=2 * config.head_dim,
        block_matrices=2 * (config.compression_block_size + 1) * config.head_dim**2,
    )


def _nsa_mixing_flops(config: NativeSparseAttentionConfig, seq_len: int) -> float:
    size, stride = config.compression_block_size, config.compression_stride
    num_compressed = max(0, (seq_len - size) // stride + 1)
    compressed = sum(seq_len - (block * stride + size - 1) for block in range(num_compressed)) / seq_len
    selected = 0
    for block, start in enumerate(range(0, seq_len, config.selection_block_size)):
        num_queries = min(config.selection_block_size, seq_len - start)
        before = min(config.num_selected_blocks, block + 1) - 1
        selected += num_queries * before * config.selection_block_size + num_queries * (num_queries + 1) // 2
    positions = compressed + selected / seq_len + visible_positions(seq_len, config.window)
    compression = 4 * config.num_kv_heads * (size + 1) * config.head_dim**2 * num_compressed / seq_len
    return 4 * config.num_heads * config.head_dim * positions + compression


def _nsa_activation_bytes(config: NativeSparseAttentionConfig, dim: int, seq_len: int, operand: int) -> int:
    width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    size, stride = config.compression_block_size, config.compression_stride
    num_compressed = max(0, (seq_len - size) // stride + 1)
    tables = config.num_heads * (operand * seq_len + (4 + operand) * num_compressed)
    compression = operand * num_compressed * ((2 * size + 4) * kv_width + 2 * width) // seq_len
    windowed = max(0, seq_len - config.window)
    window = operand * (4 * kv_width * windowed // seq_len + (width if windowed else 0))
    kept = operand * (6 * width + 5 * kv_width + 3 * config.num_heads) + 8 * config.num_heads
    return tables + compression + window + kept + _input_casts(4, dim, operand)


def _filled(seq_len: int, chunk_size: int) -> int:
    """Returns the positions of whole chunks that hold the sequence."""
    return -(-seq_len // chunk_size) * chunk_size


def _input_casts(num_projections: int, dim: int, operand: int) -> int:
    """Returns the bytes of the casts of the input for more, or fewer, projections than queries, keys and values."""
    return (num_projections - 3) * 2 * dim if operand == 2 else 0


# One entry per kind; tests/contracts checks that none is missing.
_PARAMETERS: dict[str, Callable[[Any, int], AttentionParameters]] = {
    "gdn": _gdn_parameters,
    "gqa": _gqa_parameters,
    "kda": _kda_parameters,
    "mla": _mla_parameters,
    "nsa": _nsa_parameters,
}
_MIXING_FLOPS: dict[str, Callable[[Any, int], float]] = {
    "gdn": lambda config, seq_len: _delta_rule_flops(
        config.num_heads, config.head_dim, config.v_head_dim, min(GDN_CHUNK, seq_len)
    ),
    "gqa": _gqa_mixing_flops,
    "kda": lambda config, seq_len: _delta_rule_flops(
        config.num_heads, config.head_dim, config.head_dim, min(KDA_CHUNK, seq_len)
    ),
    "mla": _mla_mixing_flops,
    "nsa": _nsa_mixing_flops,
}
_ACTIVATION_BYTES: dict[str, Callable[[Any, int, int, int], int]] = {
    "gdn": _gdn_activation_bytes,
    "gqa": _gqa_activation_bytes,
    "kda": _kda_activation_bytes,
    "mla": _mla_activation_bytes,
    "nsa": _nsa_activation_bytes,
}
