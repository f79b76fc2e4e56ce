"""Linear and sparse attention against the published equations in float64, and against other people's references.

The references are the naive forms of flash-linear-attention, which compute in float32 whatever they are given.
"""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.models import CPU, random_rows
from trainer.attention.delta_rule import chunked_delta_rule, recurrent_delta_rule, unit_length
from trainer.attention.nsa import NativeSparseAttention
from trainer.attention.nsa_blocks import blocks_of_sequence
from trainer.attention.rope import rotate
from trainer.config.attention import NativeSparseAttentionConfig

with warnings.catch_warnings():
    # Importing it warns that there is no GPU and no Flash Attention; its naive forms need neither.
    warnings.simplefilter("ignore")
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
    from fla.ops.kda.naive import naive_recurrent_kda
    from fla.ops.nsa.naive import naive_nsa_compression, naive_nsa_selection, naive_nsa_topk

SEQ_LEN, NUM_HEADS, KEY_DIM, VALUE_DIM = 37, 3, 8, 6


def delta_rule_inputs(dtype: torch.dtype, *, per_feature: bool) -> dict[str, Tensor]:
    decay_dim = KEY_DIM if per_feature else 1
    return {
        "query_BLHd": unit_length(random_rows(2, SEQ_LEN, NUM_HEADS, KEY_DIM, seed=0, dtype=dtype)),
        "key_BLHd": unit_length(random_rows(2, SEQ_LEN, NUM_HEADS, KEY_DIM, seed=1, dtype=dtype)),
        "value_BLHe": random_rows(2, SEQ_LEN, NUM_HEADS, VALUE_DIM, seed=2, dtype=dtype),
        "log_decay_BLHd": -random_rows(2, SEQ_LEN, NUM_HEADS, decay_dim, seed=3, dtype=dtype).exp(),
        "strength_BLH": random_rows(2, SEQ_LEN, NUM_HEADS, seed=4, dtype=dtype).sigmoid(),
    }


def test_one_decay_per_head_is_equation_10_of_gated_deltanet():
    """S_t = S_{t-1} (a_t (I - b_t k_t k_t^T)) + b_t v_t k_t^T, o_t = S_t q_t: there S is a value by key matrix."""
    given = delta_rule_inputs(torch.float64, per_feature=False)
    found, _ = chunked_delta_rule(**given, chunk_size=16)
    for sequence, head in ((0, 0), (1, 2)):
        memory = torch.zeros(VALUE_DIM, KEY_DIM, dtype=torch.float64)
        for t in range(SEQ_LEN):
            query, key, value = (given[name][sequence, t, head] for name in ("query_BLHd", "key_BLHd", "value_BLHe"))
            strength, decay = given["strength_BLH"][sequence, t, head], given["log_decay_BLHd"][sequence, t, head].exp()
            forget = decay * (torch.eye(KEY_DIM, dtype=torch.float64) - strength * torch.outer(key, key))
            memory = memory @ forget + strength * torch.outer(value, key)
            expected = memory @ query / KEY_DIM**0.5
            torch.testing.assert_close(found[sequence, t, head], expected, rtol=0, atol=1e-13)


def test_a_decay_per_feature_is_equation_1_of_kimi_linear():
    """S_t = (I - b_t k_t k_t^T) diag(a_t) S_{t-1} + b_t k_t v_t^T, o_t = S_t^T q_t."""
    given = delta_rule_inputs(torch.float64, per_feature=True)
    found, _ = chunked_delta_rule(**given, chunk_size=16)
    for sequence, head in ((0, 0), (1, 2)):
        memory = torch.zeros(KEY_DIM, VALUE_DIM, dtype=torch.float64)
        for t in range(SEQ_LEN):
            query, key, value = (given[name][sequence, t, head] for name in ("query_BLHd", "key_BLHd", "value_BLHe"))
            strength, decay = given["strength_BLH"][sequence, t, head], given["log_decay_BLHd"][sequence, t, head].exp()
            forget = (torch.eye(KEY_DIM, dtype=torch.float64) - strength * torch.outer(key, key)) @ decay.diag()
            memory = forget @ memory + strength * torch.outer(key, value)
            expected = memory.t() @ query / KEY_DIM**0.5
            torch.testing.assert_close(found[sequence, t, head], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("per_feature", [True, False], ids=["kda", "gdn"])
@pytest.mark.parametrize("form", ["chunked", "recurrent"])
def test_delta_rule_equals_the_reference_of_flash_linear_attention(form: str, per_feature: bool):
    given = {name: x.requires_grad_() for name, x in delta_rule_inputs(torch.float32, per_feature=per_feature).items()}
    query, key, value, log_decay, strength = given.values()
    state = random_rows(2, NUM_HEADS, KEY_DIM, VALUE_DIM, seed=5)
    options = {"initial_state": state, "output_final_state": True}
    if per_feature:
        expected = naive_recurrent_kda(query, key, value, log_decay, strength, **options)
    else:
        expected = naive_recurrent_gated_delta_rule(query, key, value, strength, log_decay.squeeze(-1), **options)
    chunked = form == "chunked"
    found = (
        chunked_delta_rule(**given, chunk_size=16, state_BHde=state)
        if chunked
        else recurrent_delta_rule(**given, state_BHde=state)
    )
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-6)
    weight = random_rows(2, SEQ_LEN, NUM_HEADS, VALUE_DIM, seed=7)
    mine, theirs = (torch.autograd.grad((out[0] * weight).sum(), list(given.values())) for out in (found, expected))
    for name, ours, reference in zip(given, mine, theirs, strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=2e-5, msg=name)


def sparse_layer(**fields: int) -> tuple[NativeSparseAttention, NativeSparseAttentionConfig]:
    """Returns a layer whose compressed blocks are its selection blocks, as the reference has them.

    Its scores are moderate: where each head of a group gives all its weight to one block, the blocks' sums tie.
    """
    config = NativeSparseAttentionConfig(
        num_heads=8, num_kv_heads=2, head_dim=6, num_selected_blocks=3 + fields.pop("more", 0), **fields
    )
    layer = NativeSparseAttention(config, dim=16, norm_eps=1e-6)
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(random_rows(*parameter.shape, seed=seed) * 0.3)
    return layer, config


@pytest.mark.parametrize(("size", "more", "seq_len"), [(4, 0, 33), (4, 2, 48), (8, 1, 64), (2, 1, 21)])
def test_sparse_attention_equals_the_references_of_flash_linear_attention(size: int, more: int, seq_len: int):
    layer, config = sparse_layer(
        compression_block_size=size, compression_stride=size, selection_block_size=size, window=size, more=more
    )
    x_BLD = random_rows(2, seq_len, 16, seed=9)
    query = layer.query(x_BLD).unflatten(-1, (8, 6))
    keys, values = (linear(x_BLD).unflatten(-1, (3, 2, 6)).unbind(2) for linear in (layer.key, layer.value))
    blocks = blocks_of_sequence(seq_len, size=size, stride=size, device=CPU)
    small_key, small_value = (
        layer.compress_key(layer._cut(keys[0], blocks)),
        layer.compress_value(layer._cut(values[0], blocks)),
    )
    options = {"block_size": size, "scale": 6**-0.5}
    compressed, _ = naive_nsa_compression(query, small_key, small_value, **options)
    # The reference knows whole blocks only; the last, unfinished one is a query's own or the one before.
    filled_key = F.pad(small_key, (0, 0, 0, 0, 0, -(-seq_len // size) - small_key.shape[1]))
    indices = naive_nsa_topk(query, filled_key, config.num_selected_blocks, **options)
    turned = [rotate(heads, theta=config.rope_theta) for heads in (query, keys[1], keys[2])]
    selected = naive_nsa_selection(turned[0], turned[1], values[1], indices, **options)
    distance_LL = torch.arange(seq_len)[:, None] - torch.arange(seq_len)
    windowed = F.scaled_dot_product_attention(
        turned[0].transpose(1, 2),
        turned[2].transpose(1, 2),
        values[2].transpose(1, 2),
        attn_mask=(distance_LL >= 0) & (distance_LL < config.window),
        enable_gqa=True,
    ).transpose(1, 2)
    gates = layer.gate(x_BLD).sigmoid().unflatten(-1, (8, 3)).unsqueeze(-1).unbind(-2)
    expected = layer.out((gates[0] * compressed + gates[1] * selected + gates[2] * windowed).flatten(-2))
    scale = expected.abs().max().item()
    torch.testing.assert_close(layer(x_BLD), expected, rtol=0, atol=1e-5 * scale)
