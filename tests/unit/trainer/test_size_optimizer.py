"""The memory estimate of each optimizer against the bytes it really keeps."""

from typing import Any

import pytest
import torch

from tests.support.component_configs import config_classes, example_config
from tests.support.models import CPU
from tests.support.training import train_config
from trainer.config.optimizers import OptimizerConfig
from trainer.model.build import build_model
from trainer.model.size import memory_estimate
from trainer.optimizers.build import build_optimizer


def bytes_estimated_and_kept(kind: str, **fields: Any) -> tuple[float, int]:
    """Returns the estimate and the bytes of the states of a tiny model, step counts excepted."""
    optimizer_config = example_config(OptimizerConfig, kind, **fields)
    config = train_config(optimizer=optimizer_config.model_dump())
    model = build_model(config.model, seed=0, device=CPU)
    optimizer = build_optimizer(config.optimizer, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.dim() > 0)
    return memory_estimate(config).optimizer_gib * 2**30, kept


@pytest.mark.parametrize("kind", config_classes(OptimizerConfig))
def test_estimate_is_what_the_optimizer_keeps(kind: str) -> None:
    estimated, kept = bytes_estimated_and_kept(kind)
    assert estimated == kept


@pytest.mark.parametrize("kind", ["soap", "shampoo"])
def test_estimate_leaves_out_sides_that_are_too_long(kind: str) -> None:
    estimated, kept = bytes_estimated_and_kept(kind, max_dim=20)
    assert estimated == kept < bytes_estimated_and_kept(kind)[1]


def test_estimate_of_several_at_once_is_what_each_keeps() -> None:
    estimated, kept = bytes_estimated_and_kept(
        "by_role", dense={"kind": "muon"}, expert={"kind": "lion"}, embedding={"kind": "adafactor"}
    )
    assert estimated == kept
    groups = [
        {"pattern": "blocks.0.*.experts.*", "rule": {"kind": "shampoo"}},
        {"pattern": "*.attention.*", "rule": {"kind": "muon"}},
        {"pattern": "embedding.*", "rule": {"kind": "adafactor"}},
    ]
    estimated, kept = bytes_estimated_and_kept("by_pattern", groups=groups, default={"kind": "lion"})
    assert estimated == kept
