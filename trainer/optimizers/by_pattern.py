"""Several optimizers at once, by the names of parameters."""

import torch
from torch import nn

from trainer.config.optimizers import ByPatternConfig
from trainer.config.patterns import first_match
from trainer.optimizers.base import OptimizerBuilder
from trainer.optimizers.grouped import GroupedOptimizer
from trainer.optimizers.groups import RoleGroup, role_groups
from trainer.optimizers.rules import RULES, rule_options

_WRAPPED = "module."  # what DistributedDataParallel puts before every name


class ByPattern(OptimizerBuilder):
    """Updates each parameter by the rule of the first pattern that its name matches, or by the default."""

    def __init__(self, config: ByPatternConfig) -> None:
        self.config = config

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        patterns = [group.pattern for group in self.config.groups]
        rules = [*(group.rule for group in self.config.groups), self.config.default]
        rule_of: dict[int, int] = {}
        for name, parameter in model.named_parameters():
            matched = first_match(name.removeprefix(_WRAPPED), patterns)
            rule_of[id(parameter)] = len(patterns) if matched is None else matched
        options = []
        for group in role_groups(model):
            for number, rule in enumerate(rules):
                chosen = [parameter for parameter in group.parameters if rule_of[id(parameter)] == number]
                if chosen:
                    options += rule_options(RoleGroup(group.role, group.decayed, chosen), self.config, rule)
        return GroupedOptimizer(options, RULES)
