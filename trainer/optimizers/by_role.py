"""Several optimizers at once, one per role of parameters."""

from typing import Any

import torch
from torch import nn

from trainer.config.optimizers import AdafactorRule, AdamWRule, ByRoleConfig, LionRule, MuonRule
from trainer.optimizers.adafactor import adafactor_update
from trainer.optimizers.adamw import adamw_options, adamw_update
from trainer.optimizers.base import OptimizerBuilder
from trainer.optimizers.grouped import GroupedOptimizer
from trainer.optimizers.groups import RoleGroup, rate_options, role_groups
from trainer.optimizers.lion import lion_update
from trainer.optimizers.muon import muon_update, split_matrices


class ByRole(OptimizerBuilder):
    """Updates each role by its own rule; a role's rule does what the optimizer of that kind does to the role."""

    def __init__(self, config: ByRoleConfig) -> None:
        self.config = config

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        rules = {
            "adafactor": adafactor_update,
            "adamw": adamw_update,
            "lion": lion_update,
            "muon": muon_update,
        }
        return GroupedOptimizer([each for group in role_groups(model) for each in self._options(group)], rules)

    def _options(self, group: RoleGroup) -> list[dict[str, Any]]:
        rule: AdamWRule | MuonRule | LionRule | AdafactorRule = getattr(self.config, group.role)
        if group.role == "router" and rule.weight_decay is None:
            rule = rule.model_copy(update={"weight_decay": 0.0})  # decay pulls logits towards uniform routing
        shared = rate_options(group, self.config, rule)
        match rule:
            case AdamWRule():
                return [shared | adamw_options((rule.beta1, rule.beta2), eps=rule.eps)]
            case LionRule():
                return [shared | {"rule": "lion", "betas": (rule.beta1, rule.beta2)}]
            case MuonRule():
                names = ("momentum", "nesterov", "num_iterations")
                others = AdamWRule()
                return split_matrices(
                    group,
                    shared,
                    {"rule": "muon"} | {name: getattr(rule, name) for name in names},
                    adamw_options((others.beta1, others.beta2), eps=others.eps),
                )
            case AdafactorRule():
                names = ("decay_exponent", "clip_threshold", "min_weight_rms")
                return [shared | {"rule": "adafactor"} | {name: getattr(rule, name) for name in names}]
