"""Decoding keeps no more of the past than the method needs."""

import pytest
import torch

from tests.support.component_configs import ATTENTION_VARIANTS
from tests.support.models import random_rows
from trainer.attention import ATTENTIONS
from trainer.attention.base import Attention
from trainer.attention.decoding import Past, attend_once
from trainer.config.attention import (
    GatedDeltaNetConfig,
    GroupedQueryAttentionConfig,
    KimiDeltaAttentionConfig,
    MultiHeadLatentAttentionConfig,
    NativeSparseAttentionConfig,
)

DIM = 16


def layer_of(config) -> Attention:
    layer = ATTENTIONS[config.kind](config, dim=DIM, norm_eps=1e-6)
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(random_rows(*parameter.shape, seed=seed) * 0.5)
    return layer


def values_kept(config, *, num_positions: int) -> int:
    layer = layer_of(config)
    past: Past | None = None
    with torch.no_grad():
        for x_BD in random_rows(2, num_positions, DIM).unbind(1):
            _, past = layer.decode(x_BD, past)
    assert past is not None
    assert past.num_positions == num_positions
    return past.num_values


@pytest.mark.parametrize("num_positions", [1, 3, 12])
def test_grouped_queries_keep_keys_and_values_of_their_window(num_positions: int):
    config = GroupedQueryAttentionConfig(num_heads=4, num_kv_heads=2, head_dim=6)
    assert values_kept(config, num_positions=num_positions) == 2 * 2 * 6 * num_positions
    windowed = config.model_copy(update={"window": 4})
    assert values_kept(windowed, num_positions=num_positions) == 2 * 2 * 6 * min(num_positions, 4)


def test_latent_attention_keeps_the_latent_and_one_rotated_key():
    config = MultiHeadLatentAttentionConfig.model_validate(ATTENTION_VARIANTS["mla-q-lora"])
    assert values_kept(config, num_positions=9) == 9 * (config.kv_lora_rank + config.qk_rope_head_dim)


@pytest.mark.parametrize("num_positions", [1, 5, 20])
def test_linear_attention_keeps_as_much_after_any_number_of_positions(num_positions: int):
    kda = KimiDeltaAttentionConfig(num_heads=3, head_dim=4, conv_size=3)
    assert values_kept(kda, num_positions=num_positions) == 3 * 4 * 4 + 2 * 3 * (3 * 4)
    gdn = GatedDeltaNetConfig(num_heads=3, head_dim=4, v_head_dim=6, conv_size=3)
    assert values_kept(gdn, num_positions=num_positions) == 3 * 4 * 6 + 2 * 3 * (4 + 4 + 6)


def test_sparse_attention_keeps_blocks_positions_and_window():
    config = NativeSparseAttentionConfig.model_validate(ATTENTION_VARIANTS["nsa-blocks"])
    num_blocks = (19 - config.compression_block_size) // config.compression_stride + 1
    rows = num_blocks + config.compression_block_size + 19 + config.window
    assert values_kept(config, num_positions=19) == 2 * config.num_kv_heads * config.head_dim * rows


def test_query_that_sees_part_of_the_positions_has_no_weight_for_the_others():
    query, keys = random_rows(1, 4, 6, dtype=torch.float64), random_rows(1, 5, 2, 6, seed=1, dtype=torch.float64)
    sees_BGL = torch.tensor([[[True, False, True, False, True], [False, True, False, False, False]]])
    out, weights = attend_once(query, keys, keys, scale=0.4, sees_BGL=sees_BGL)
    assert (weights[0, :2, [1, 3]] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, dtype=torch.float64))
    torch.testing.assert_close(out[0, 2:], keys[0, 1, 1].expand(2, -1), rtol=0, atol=1e-14)


def test_far_position_is_rotated_as_in_the_whole_sequence():
    layer = layer_of(GroupedQueryAttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8)).double()
    x_BLD = random_rows(1, 300, DIM, dtype=torch.float64)
    past, outputs = None, []
    with torch.no_grad():
        for x_BD in x_BLD.unbind(1):
            out_BD, past = layer.decode(x_BD, past)
            outputs.append(out_BD)
        torch.testing.assert_close(torch.stack(outputs, 1), layer(x_BLD), rtol=0, atol=1e-11)
