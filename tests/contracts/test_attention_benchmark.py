"""The attention benchmark keeps its form, names every kind, and its plain forms compute what ours compute."""

import json

import pytest
import torch

from benchmarks.attention import Shape, layer_configs, naive_attention, naive_sparse, run
from tests.support.models import random_rows
from trainer.attention import ATTENTIONS
from trainer.attention.scaled_dot_product import causal_attention

SHAPE = Shape(sequences=1, seq_len=64, num_heads=4, num_kv_heads=2, head_dim=8)


def test_json_names_the_shape_and_every_ratio() -> None:
    report = json.loads(run(device="cpu", dtype=torch.float32, rounds=1, shapes=[SHAPE]).as_json())
    assert report["dtype"] == "float32"
    (measurement,) = report["measurements"]
    assert measurement["shape"] == SHAPE._asdict()
    kinds = set(layer_configs(SHAPE))
    assert kinds >= set(ATTENTIONS)
    expected = {f"naive_to_{kind}" for kind in kinds} | {f"documents_to_{kind}" for kind in kinds}
    assert set(measurement["ratios"]) == expected | {f"{kind}_to_gqa" for kind in kinds - {"gqa"}}
    assert all(ratio > 0 for ratio in measurement["ratios"].values())
    times = measurement["milliseconds"]
    # Both are rounded for reading.
    assert measurement["ratios"]["nsa_to_gqa"] == pytest.approx(times["nsa"] / times["gqa"], rel=1e-2)


def test_naive_sparse_layer_equals_ours() -> None:
    config = layer_configs(SHAPE)["nsa"]
    layer = ATTENTIONS["nsa"](config, dim=16, norm_eps=1e-5).double()
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(random_rows(*parameter.shape, seed=seed, dtype=torch.float64) * 0.5)
    x_BLD = random_rows(2, 64, 16, dtype=torch.float64)
    torch.testing.assert_close(naive_sparse(layer, x_BLD), layer(x_BLD), rtol=0, atol=1e-11)


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_naive_table_equals_ours(window: int | None, with_sinks: bool) -> None:
    query, key, value = (random_rows(2, 32, heads, 6, seed=heads, dtype=torch.float64) for heads in (4, 2, 2))
    sinks_H = random_rows(4, seed=9, dtype=torch.float64) if with_sinks else None
    distance_LL = torch.arange(32)[:, None] - torch.arange(32)
    sees_LL = (distance_LL >= 0) & (distance_LL < (window or 32))
    expected = causal_attention(query, key, value, window=window, sinks_H=sinks_H)
    found = naive_attention(query, key, value, sees=sees_LL, sinks_H=sinks_H)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
