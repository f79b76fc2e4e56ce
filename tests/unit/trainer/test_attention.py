"""Grouped-query attention and its rotary positions."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.models import random_rows
from trainer.attention.gqa import GroupedQueryAttention
from trainer.attention.rope import rotate
from trainer.config.attention import GroupedQueryAttentionConfig


def attention(*, num_heads: int = 4, num_kv_heads: int = 2, **options: Any) -> GroupedQueryAttention:
    """Returns a float64 layer of width 24 with heads of 6."""
    config = GroupedQueryAttentionConfig(
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=6, rope_theta=50.0, **options
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

            def feature(linear: nn.Linear, norm: nn.Module | None, rows: slice, at: int) -> Tensor:
                all_heads = linear.weight @ x_LD[at] + (0.0 if linear.bias is None else linear.bias)
                vector_d = all_heads[rows]
                if norm is not None:
                    covered = vector_d if layer.norm_per_head else all_heads
                    gain = norm.gain if layer.norm_per_head else norm.gain[rows]
                    vector_d = gain * vector_d / (covered.square().mean() + norm.eps).sqrt()
                return vector_d

            query_d = naive_rotation(feature(layer.query, layer.query_norm, own, position), position, layer.rope_theta)
            first = 0 if layer.window is None else max(0, position - layer.window + 1)
            scores = [
                query_d
                @ naive_rotation(feature(layer.key, layer.key_norm, shared, at), at, layer.rope_theta)
                / math.sqrt(head_dim)
                for at in range(first, position + 1)
            ]
            values = [feature(layer.value, None, shared, at) for at in range(first, position + 1)]
            if layer.sinks_H is not None:
                scores.append(layer.sinks_H[head])
                values.append(torch.zeros_like(values[0]))
            heads.append(torch.stack(scores).softmax(0) @ torch.stack(values))
        bias = 0.0 if layer.out.bias is None else layer.out.bias
        outputs.append(layer.out.weight @ torch.cat(heads) + bias)
    return torch.stack(outputs)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_equals_one_head_and_position_at_a_time(num_kv_heads: int, qk_norm: bool) -> None:
    layer = attention(num_kv_heads=num_kv_heads, qk_norm=qk_norm)
    x_BLD = random_rows(2, 7, 24, seed=9, dtype=torch.float64)
    expected = torch.stack([naive_attention(layer, x_LD) for x_LD in x_BLD])
    torch.testing.assert_close(layer(x_BLD), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"bias": "qkv"},
        {"bias": "all"},
        {"sinks": True},
        {"window": 1},
        {"window": 3},
        {"window": 4},
        {"window": 8},
        {"window": 9},
        {"window": 3, "sinks": True, "bias": "all"},
        {"qk_norm": True, "qk_norm_over": "all_heads"},
    ],
    ids=str,
)
def test_options_equal_one_head_and_position_at_a_time(options: dict[str, Any]) -> None:
    layer = attention(**options)
    x_BLD = random_rows(2, 8, 24, seed=9, dtype=torch.float64)
    expected = torch.stack([naive_attention(layer, x_LD) for x_LD in x_BLD])
    torch.testing.assert_close(layer(x_BLD), expected, rtol=0, atol=1e-12)
    inputs = (x_BLD.requires_grad_(), *layer.parameters())
    weight_BLD = random_rows(2, 8, 24, seed=8, dtype=torch.float64)
    naive = torch.stack([naive_attention(layer, x_LD) for x_LD in x_BLD])
    for fast, slow in zip(
        torch.autograd.grad((layer(x_BLD) * weight_BLD).sum(), inputs),
        torch.autograd.grad((naive * weight_BLD).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-11)


def test_position_outside_the_window_has_no_influence() -> None:
    layer, x_BLD = attention(window=3), random_rows(1, 9, 24, dtype=torch.float64)
    changed_BLD = x_BLD.clone()
    changed_BLD[:, 2] += 1.0
    moved = (layer(x_BLD) - layer(changed_BLD)).abs().amax(dim=(0, 2)) > 1e-6
    assert moved.tolist() == [False, False, True, True, True, False, False, False, False]


def test_large_sink_takes_all_the_weight_and_small_one_none() -> None:
    layer, x_BLD = attention(sinks=True), random_rows(1, 6, 24, dtype=torch.float64)
    layer.sinks_H.data.fill_(60.0)
    assert layer(x_BLD).abs().max() < 1e-12
    layer.sinks_H.data.fill_(-60.0)
    without = attention()
    without.load_state_dict({name: weight for name, weight in layer.state_dict().items() if name != "sinks_H"})
    torch.testing.assert_close(layer(x_BLD), without(x_BLD), rtol=0, atol=1e-12)


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
