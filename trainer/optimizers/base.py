"""What an optimizer component has to be."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from trainer.config.optimizers import OptimizerConfig


class OptimizerBuilder(ABC):
    """Makes a torch optimizer from its config and a model.

    Every parameter group of what it builds carries `role` (a ParameterRole) and `lr_scale`, and starts at the config's
    learning rate times `lr_scale`.
    """

    @abstractmethod
    def __init__(self, config: OptimizerConfig) -> None:
        """Takes the optimizer's own config."""

    @abstractmethod
    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Returns the optimizer over all trained parameters of `model`, which may be wrapped for data parallelism."""
