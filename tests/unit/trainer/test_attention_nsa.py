"""Native sparse attention against its equations, one query at a time."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.support.models import CPU, random_rows
from trainer.attention.nsa import NativeSparseAttention
from trainer.attention.nsa_blocks import blocks_of_sequence
from trainer.attention.rope import rotate
from trainer.config.attention import NativeSparseAttentionConfig
from trainer.model.attention_size import mixing_flops

FLOAT = torch.float64
FIELDS = {
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 6,
    "compression_block_size": 4,
    "compression_stride": 2,
    "selection_block_size": 4,
    "num_selected_blocks": 3,
    "window": 5,
    "rope_theta": 50.0,
}


def config(**fields: Any) -> NativeSparseAttentionConfig:
    return NativeSparseAttentionConfig.model_validate(FIELDS | fields)


def attention(**fields: Any) -> NativeSparseAttention:
    """Returns a float64 layer of width 16."""
    layer = NativeSparseAttention(config(**fields), dim=16, norm_eps=1e-6).double()
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(random_rows(*parameter.shape, seed=seed, dtype=FLOAT) * 0.7)
    return layer


def attended(query_d: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    scores = torch.stack([query_d @ key_d for key_d in keys]) / math.sqrt(len(query_d))
    return scores.softmax(0) @ torch.stack(values)


def compressed(compression: nn.Module, block_ld: Tensor) -> Tensor:
    inner = compression.inner.weight @ block_ld.flatten() + compression.inner.bias
    return compression.outer.weight @ (inner * inner.sigmoid())


def selected_blocks(weights_per_head: list[Tensor], position: int, config: NativeSparseAttentionConfig) -> set[int]:
    """Equations 9 to 11 as they stand: m runs over a selection block, n over a compressed one, in strides."""
    per_selection = config.selection_block_size // config.compression_stride
    per_compression = config.compression_block_size // config.compression_stride
    own = position // config.selection_block_size
    scores = {}
    for block in range(own + 1):
        score = 0.0
        for weights_M in weights_per_head:
            for m in range(per_selection):
                for n in range(per_compression):
                    index = per_selection * (block + 1) - 1 - m - n
                    if 0 <= index < len(weights_M):
                        score += weights_M[index].item()
        scores[block] = math.inf if block in (0, own - 1, own) else score
    return set(sorted(scores, key=lambda block: -scores[block])[: config.num_selected_blocks])


def naive(layer: NativeSparseAttention, config: NativeSparseAttentionConfig, x_LD: Tensor) -> Tensor:
    num_heads, num_groups, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
    size, stride = config.compression_block_size, config.compression_stride
    query = (x_LD @ layer.query.weight.t()).unflatten(-1, (num_heads, head_dim))
    keys = (x_LD @ layer.key.weight.t()).unflatten(-1, (3, num_groups, head_dim)).unbind(1)
    values = (x_LD @ layer.value.weight.t()).unflatten(-1, (3, num_groups, head_dim)).unbind(1)
    turned_query, turned_selected, turned_window = (
        rotate(heads.unsqueeze(0), theta=config.rope_theta)[0] for heads in (query, keys[1], keys[2])
    )
    gates = (x_LD @ layer.gate.weight.t()).sigmoid().unflatten(-1, (num_heads, 3))
    rows = []
    for t in range(len(x_LD)):
        heads: list[Tensor] = []
        for group in range(num_groups):
            starts = [start for start in range(0, t + 1, stride) if start + size - 1 <= t]
            small_keys = [compressed(layer.compress_key, keys[0][s : s + size, group]) for s in starts]
            small_values = [compressed(layer.compress_value, values[0][s : s + size, group]) for s in starts]
            members = range(group * num_heads // num_groups, (group + 1) * num_heads // num_groups)
            weights = []
            if starts:
                scores = [torch.stack([query[t, head] @ key for key in small_keys]) for head in members]
                weights = [(score / math.sqrt(head_dim)).softmax(0) for score in scores]
            blocks = selected_blocks(weights, t, config)
            seen = [i for i in range(t + 1) if i // config.selection_block_size in blocks]
            window = range(max(0, t - config.window + 1), t + 1)
            for head in members:
                branches = [
                    attended(query[t, head], small_keys, small_values) if starts else torch.zeros(head_dim),
                    attended(
                        turned_query[t, head],
                        [turned_selected[i, group] for i in seen],
                        [values[1][i, group] for i in seen],
                    ),
                    attended(
                        turned_query[t, head],
                        [turned_window[i, group] for i in window],
                        [values[2][i, group] for i in window],
                    ),
                ]
                heads.append(sum(gate * branch for gate, branch in zip(gates[t, head], branches, strict=True)))
        rows.append(layer.out.weight @ torch.cat(heads))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_kv_heads": 1},
        {"num_kv_heads": 4},
        {"compression_stride": 4},
        {"compression_stride": 1, "compression_block_size": 3},
        {"compression_block_size": 2, "num_selected_blocks": 4, "window": 40},
        {"selection_block_size": 8, "window": 8},
    ],
    ids=str,
)
def test_equals_its_equations_one_query_at_a_time(fields: dict[str, Any]) -> None:
    layer, x_LD = attention(**fields), random_rows(26, 16, seed=9, dtype=FLOAT)
    expected = naive(layer, config(**fields), x_LD)
    torch.testing.assert_close(layer(x_LD.unsqueeze(0))[0], expected, rtol=0, atol=1e-12)


def test_sequence_shorter_than_a_compressed_block_has_the_other_branches() -> None:
    layer, x_LD = attention(), random_rows(3, 16, seed=9, dtype=FLOAT)
    torch.testing.assert_close(layer(x_LD.unsqueeze(0))[0], naive(layer, config(), x_LD), rtol=0, atol=1e-12)


def test_selecting_every_block_sees_every_position() -> None:
    weights_BHLM = torch.zeros(1, 4, 26, 12, dtype=FLOAT)
    causal_LL = torch.ones(26, 26, dtype=torch.bool).tril()
    blocks = blocks_of_sequence(26, size=4, stride=2, device=CPU)
    every = attention(num_selected_blocks=7)._selected_positions(weights_BHLM, blocks, None)
    assert torch.equal(every, causal_LL.expand(1, 2, 26, 26))
    few = attention(num_selected_blocks=3)._selected_positions(weights_BHLM, blocks, None)
    assert few.sum(-1).max() == 12


@pytest.mark.parametrize("seq_len", [3, 16, 26])
def test_flops_count_what_each_query_sees(seq_len: int) -> None:
    sizes = config()
    seen = 0
    for t in range(seq_len):
        complete = sum(start + 3 <= t for start in range(0, seq_len, 2))
        blocks = min(3, t // 4 + 1)
        seen += complete + (blocks - 1) * 4 + t % 4 + 1 + min(t + 1, 5)
    num_compressed = max(0, (seq_len - 4) // 2 + 1)
    compression = 2 * 2 * 2 * (4 * 6 * 6 + 6 * 6) * num_compressed
    expected = (4 * 4 * 6 * seen + compression) / seq_len
    assert mixing_flops(sizes, seq_len=seq_len) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_kv_heads": 3}, "num_heads=4 is not a multiple of num_kv_heads=3"),
        ({"compression_block_size": 3}, "compression_block_size=3 is not a multiple of compression_stride=2"),
        ({"selection_block_size": 5}, "selection_block_size=5 is not a multiple of compression_stride=2"),
        ({"compression_block_size": 6}, "compression_block_size=6 exceeds selection_block_size=4"),
        ({"window": 3}, "selection_block_size=4 exceeds window=3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        config(**fields)
