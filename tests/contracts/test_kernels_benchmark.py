"""The kernel benchmark keeps its form: other tools read its JSON."""

import json

import pytest
import torch

from benchmarks.kernels import Shape, run

RATIOS = {
    "layer_to_matmuls",
    "experts_to_matmuls",
    "loop_to_layer",
    "route_to_layer",
    "statistics_to_route",
    "statistics_to_layer",
}


def test_json_names_the_shape_and_every_ratio() -> None:
    shape = Shape(tokens=16, dim=16, hidden_dim=8, num_experts=4, top_k=2)
    report = json.loads(run(device="cpu", dtype=torch.float32, rounds=2, shapes=[shape]).as_json())
    assert report["dtype"] == "float32"
    assert report["rounds"] == 2
    (measurement,) = report["measurements"]
    assert measurement["shape"] == {"tokens": 16, "dim": 16, "hidden_dim": 8, "num_experts": 4, "top_k": 2}
    assert measurement["training_gflop"] == 18 * 16 * 2 * 16 * 8 / 1e9
    assert set(measurement["ratios"]) == RATIOS
    assert all(ratio > 0 for ratio in measurement["ratios"].values())
    times = measurement["milliseconds"]
    # Both are rounded for reading.
    assert measurement["ratios"]["route_to_layer"] == pytest.approx(times["route"] / times["layer"], rel=1e-2)
