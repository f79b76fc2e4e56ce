"""Builds the optimizer and sets its learning rate."""

import torch
from torch import nn

from trainer.config.optimizers import OptimizerConfig
from trainer.optimizers import OPTIMIZERS


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Returns the optimizer over all trained parameters of `model`.

    Every parameter group carries `role` (a ParameterRole) and `lr_scale`. `model` may be wrapped for data-parallel
    training.
    """
    return OPTIMIZERS[config.kind](config).build(model)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of each group to `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
