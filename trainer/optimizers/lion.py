"""Lion: the sign of a momentum."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.optimizers import GroupOverrides, LionConfig
from trainer.optimizers.adamw import betas
from trainer.optimizers.base import OptimizerBuilder
from trainer.optimizers.grouped import GroupedOptimizer, decay, gradients
from trainer.optimizers.groups import rate_options, role_groups


class Lion(OptimizerBuilder):
    """u = sign(beta1 m + (1 - beta1) g); w <- w - lr (u + decay w); m <- beta2 m + (1 - beta2) g.

    Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2.
    """

    def __init__(self, config: LionConfig) -> None:
        self.config = config

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = []
        for group in role_groups(model):
            overrides: GroupOverrides = getattr(self.config, group.role)
            options = {"rule": "lion", "betas": betas(self.config, overrides)}
            groups.append(rate_options(group, self.config, overrides) | options)
        return GroupedOptimizer(groups, {"lion": lion_update})


def lion_update(parameters: Sequence[Tensor], states: Sequence[dict[str, Tensor]], group: Mapping[str, Any]) -> None:
    """Moves every weight by the learning rate; an `UpdateRule`. Options: `lr`, `weight_decay`, `betas`."""
    beta1, beta2 = group["betas"]
    for parameter, gradient, state in zip(parameters, gradients(parameters), states, strict=True):
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        direction = state["momentum"].lerp(gradient, 1.0 - beta1).sign_()
        decay(parameter, group)
        parameter.add_(direction, alpha=-group["lr"])
        state["momentum"].lerp_(gradient, 1.0 - beta2)
