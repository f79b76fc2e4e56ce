"""Multi-head latent attention against its equations, and against decoding from the latent alone."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.models import random_rows
from trainer.attention.mla import MultiHeadLatentAttention
from trainer.attention.rope import rotate
from trainer.config.attention import MultiHeadLatentAttentionConfig

DIM = 20


def attention(**options: Any) -> MultiHeadLatentAttention:
    """Returns a float64 layer of 3 heads."""
    fields = {"num_heads": 3, "kv_lora_rank": 7, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 6}
    config = MultiHeadLatentAttentionConfig.model_validate(fields | {"rope_theta": 50.0} | options)
    layer = MultiHeadLatentAttention(config, dim=DIM, norm_eps=1e-6).double()
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(random_rows(*parameter.shape, seed=seed, dtype=torch.float64) * 0.5)
    return layer


def normalised(vector: Tensor, gain: Tensor) -> Tensor:
    return gain * vector / (vector.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def rotated(vector: Tensor, position: int) -> Tensor:
    """Rotary positions are tested with grouped-query attention; here the vector stands at the end of zeros."""
    padded = torch.cat([vector.new_zeros(position, *vector.shape), vector.unsqueeze(0)])
    return rotate(padded.reshape(1, position + 1, -1, vector.shape[-1]), theta=50.0)[0, -1].reshape(vector.shape)


def decoded(layer: MultiHeadLatentAttention, x_LD: Tensor, *, low_rank: bool) -> Tensor:
    """One position at a time, keeping of each only its latent (7 numbers) and its rotated key (4 numbers)."""
    num_heads, nope, rope, value_dim = layer.num_heads, layer.nope_dim, layer.rope_dim, layer.value_dim
    up = layer.kv_up.weight.unflatten(0, (num_heads, nope + value_dim))
    key_up, value_up = up[:, :nope], up[:, nope:]
    latents: list[Tensor] = []
    keys: list[Tensor] = []
    outputs = []
    for position, x_D in enumerate(x_LD):
        down = layer.kv_down.weight @ x_D
        latents.append(normalised(down[:7], layer.kv_norm.gain))
        keys.append(rotated(down[7:], position))
        if low_rank:
            query = layer.query.up.weight @ normalised(layer.query.down.weight @ x_D, layer.query.norm.gain)
        else:
            query = layer.query.weight @ x_D
        query_nope, query_rope = query.unflatten(0, (num_heads, -1)).split([nope, rope], dim=-1)
        absorbed = torch.einsum("hn,hnc->hc", query_nope, key_up)
        scores = absorbed @ torch.stack(latents).t() + rotated(query_rope, position) @ torch.stack(keys).t()
        attended = (scores / math.sqrt(nope + rope)).softmax(-1) @ torch.stack(latents)
        outputs.append(layer.out.weight @ torch.einsum("hc,hvc->hv", attended, value_up).flatten())
    return torch.stack(outputs)


@pytest.mark.parametrize("q_lora_rank", [None, 8])
@pytest.mark.parametrize("v_head_dim", [6, 9, 12])
def test_equals_decoding_from_the_latent_alone(v_head_dim: int, q_lora_rank: int | None) -> None:
    layer = attention(v_head_dim=v_head_dim, q_lora_rank=q_lora_rank)
    x_BLD = random_rows(2, 7, DIM, seed=9, dtype=torch.float64)
    expected = torch.stack([decoded(layer, x_LD, low_rank=q_lora_rank is not None) for x_LD in x_BLD])
    torch.testing.assert_close(layer(x_BLD), expected, rtol=0, atol=1e-12)


def test_only_the_rotated_part_tells_positions() -> None:
    layer = attention()
    layer.kv_down.weight.data[7:] = 0.0
    x_BLD = random_rows(1, 6, DIM, dtype=torch.float64)
    swapped_BLD = x_BLD[:, [2, 0, 1, 4, 3, 5]]
    torch.testing.assert_close(layer(x_BLD)[:, -1], layer(swapped_BLD)[:, -1], rtol=0, atol=1e-12)
    assert (attention()(x_BLD)[:, -1] - attention()(swapped_BLD)[:, -1]).abs().max() > 1e-3
