"""Several optimizers at once, one per role of parameters."""

import torch
from torch import nn

from trainer.config.optimizers import ByRoleConfig
from trainer.optimizers.base import OptimizerBuilder
from trainer.optimizers.grouped import GroupedOptimizer
from trainer.optimizers.groups import role_groups
from trainer.optimizers.rules import RULES, rule_options


class ByRole(OptimizerBuilder):
    """Updates each role by its own rule; a role's rule does what the optimizer of that kind does to the role."""

    def __init__(self, config: ByRoleConfig) -> None:
        self.config = config

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = [
            options
            for group in role_groups(model)
            for options in rule_options(group, self.config, getattr(self.config, group.role))
        ]
        return GroupedOptimizer(groups, RULES)
