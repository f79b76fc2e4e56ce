"""Grouped-query attention and its rotary positions."""

import math

import pytest
import torch
from torch import Tensor

from tests.support.models import random_rows
from trainer.attention.gqa import GroupedQueryAttention
from trainer.attention.rope import rotate
from trainer.config.attention import GroupedQueryAttentionConfig


def attention(*, num_heads: int = 4, num_kv_heads: int = 2, qk_norm: bool = False) -> GroupedQueryAttention:
    """Returns a float64 layer of width 24 with heads of 6."""
    config = GroupedQueryAttentionConfig(
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=6, qk_norm=qk_norm, rope_theta=50.0
    )
    layer = GroupedQueryAttention(config, dim=24, norm_eps=1e-6).double()
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(random_rows(*parameter.shape, seed=seed, dtype=torch.float64) * 0.5)
    return layer


def naive_rotation(x_d: Tensor, position: int, theta: float) -> Tensor:
    """Turns each adjacent pair of features by position * theta**(-2r/d)."""
    turned = x_d.clone()
    for pair in range(x_d.shape[0] // 2):
        angle = position * theta ** (-2 * pair / x_d.shape[0])
        even, odd = x_d[2 * pair], x_d[2 * pair + 1]
        turned[2 * pair] = even * math.cos(angle) - odd * math.sin(angle)
        turned[2 * pair + 1] = even * math.sin(angle) + odd * math.cos(angle)
    return turned


def naive_attention(layer: GroupedQueryAttention, x_LD: Tensor) -> Tensor:
    """One query head and one position at a time."""
    seq_len, head_dim = x_LD.shape[0], layer.head_dim
    outputs = []
    for position in range(seq_len):
        heads = []
        for head in range(layer.num_heads):
            kv_head = head // (layer.num_heads // layer.num_kv_heads)
            own = slice(head * head_dim, (head + 1) * head_dim)
            shared = slice(kv_head * head_dim, (kv_head + 1) * head_dim)

            def feature(weight: Tensor, norm: torch.nn.Module | None, rows: slice, at: int) -> Tensor:
                vector_d = weight[rows] @ x_LD[at]
                if norm is not None:
                    vector_d = norm.gain * vector_d / (vector_d.square().mean() + norm.eps).sqrt()
                return naive_rotation(vector_d, at, layer.rope_theta)

            query_d = feature(layer.query.weight, layer.query_norm, own, position)
            scores = torch.stack(
                [
                    query_d @ feature(layer.key.weight, layer.key_norm, shared, at) / math.sqrt(head_dim)
                    for at in range(position + 1)
                ]
            )
            values = torch.stack([layer.value.weight[shared] @ x_LD[at] for at in range(position + 1)])
            heads.append(scores.softmax(0) @ values)
        outputs.append(layer.out.weight @ torch.cat(heads))
    return torch.stack(outputs)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_equals_one_head_and_position_at_a_time(num_kv_heads: int, qk_norm: bool) -> None:
    layer = attention(num_kv_heads=num_kv_heads, qk_norm=qk_norm)
    x_BLD = random_rows(2, 7, 24, seed=9, dtype=torch.float64)
    expected = torch.stack([naive_attention(layer, x_LD) for x_LD in x_BLD])
    torch.testing.assert_close(layer(x_BLD), expected, rtol=0, atol=1e-12)


def test_grouped_heads_equal_multi_head_with_repeated_keys_and_values() -> None:
    grouped, multi = attention(num_kv_heads=2), attention(num_kv_heads=4)
    multi.query.weight.data.copy_(grouped.query.weight)
    multi.out.weight.data.copy_(grouped.out.weight)
    for name in ("key", "value"):
        weight = grouped.get_parameter(f"{name}.weight").unflatten(0, (2, 6)).repeat_interleave(2, dim=0)
        multi.get_parameter(f"{name}.weight").data.copy_(weight.flatten(0, 1))
    x_BLD = random_rows(2, 5, 24, dtype=torch.float64)
    torch.testing.assert_close(grouped(x_BLD), multi(x_BLD), rtol=0, atol=1e-13)


def test_qk_norm_takes_the_length_out_of_queries_and_keys() -> None:
    layer = attention(qk_norm=True)
    x_BLD = random_rows(1, 6, 24, dtype=torch.float64)
    before = layer(x_BLD)
    layer.query.weight.data *= 100.0
    layer.key.weight.data *= 0.01
    # Not exactly: eps is added to the mean square.
    torch.testing.assert_close(layer(x_BLD), before, rtol=0, atol=1e-2)


def test_rotation_turns_adjacent_pairs() -> None:
    x_BLHd = random_rows(1, 9, 2, 8, dtype=torch.float64)
    expected = torch.stack(
        [
            torch.stack([naive_rotation(x_BLHd[0, position, head], position, 10_000.0) for head in range(2)])
            for position in range(9)
        ]
    )
    torch.testing.assert_close(rotate(x_BLHd, theta=10_000.0)[0], expected, rtol=0, atol=1e-13)


def test_score_of_rotated_query_and_key_depends_on_their_distance_only() -> None:
    query_d, key_d = random_rows(2, 8, dtype=torch.float64)
    queries = rotate(query_d.expand(1, 40, 1, 8), theta=100.0)[0, :, 0]
    keys = rotate(key_d.expand(1, 40, 1, 8), theta=100.0)[0, :, 0]
    scores = queries @ keys.t()
    for distance in (0, 3, 17):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-12)
    assert (scores[3, 0] - scores[4, 0]).abs() > 1e-3


def test_rotation_is_accurate_far_into_a_long_sequence() -> None:
    # Angles in float32 would be off by up to 131071 * 2**-24 = 8e-3 here.
    x_BLHd = torch.zeros(1, 131_072, 1, 2)
    x_BLHd[..., 0] = 1.0
    last = rotate(x_BLHd, theta=10_000.0)[0, -1, 0]
    expected = torch.tensor([math.cos(131_071.0), math.sin(131_071.0)])
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-6)


def test_rotation_of_bfloat16_is_that_of_float32_rounded() -> None:
    x_BLHd = random_rows(1, 5, 2, 4).bfloat16()
    assert torch.equal(rotate(x_BLHd, theta=10.0), rotate(x_BLHd.float(), theta=10.0).bfloat16())
