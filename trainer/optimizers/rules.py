"""The rules that optimizers of several rules are made of, and the parameter groups they ask for."""

from typing import Any

from trainer.config.optimizers import (
    AdafactorRule,
    AdamWRule,
    LionRule,
    MuonRule,
    OptimizerRule,
    ShampooRule,
    SOAPRule,
)
from trainer.optimizers.adafactor import adafactor_update
from trainer.optimizers.adamw import adamw_options, adamw_update
from trainer.optimizers.grouped import UpdateRule
from trainer.optimizers.groups import RatedConfig, RoleGroup, rate_options
from trainer.optimizers.lion import lion_update
from trainer.optimizers.muon import muon_update, split_matrices
from trainer.optimizers.shampoo import shampoo_update
from trainer.optimizers.soap import soap_update

RULES: dict[str, UpdateRule] = {
    "adafactor": adafactor_update,
    "adamw": adamw_update,
    "lion": lion_update,
    "muon": muon_update,
    "shampoo": shampoo_update,
    "soap": soap_update,
}
"""`kind` of an OptimizerRule -> what updates by it."""


def rule_options(group: RoleGroup, config: RatedConfig, rule: OptimizerRule) -> list[dict[str, Any]]:
    """Returns the parameter groups of parameters that follow `rule`; a router whose rule has no decay is not decayed.

    Rules for matrices leave vectors to AdamW.
    """
    if group.role == "router" and rule.weight_decay is None:
        rule = rule.model_copy(update={"weight_decay": 0.0})  # decay pulls logits towards uniform routing
    shared = rate_options(group, config, rule)
    named = {"rule": rule.kind}
    match rule:
        case AdamWRule():
            return [shared | adamw_options((rule.beta1, rule.beta2), eps=rule.eps)]
        case LionRule():
            return [shared | named | {"betas": (rule.beta1, rule.beta2)}]
        case AdafactorRule():
            return [shared | named | _fields(rule, "decay_exponent", "clip_threshold", "min_weight_rms")]
        case MuonRule():
            others = AdamWRule()
            muon = named | _fields(rule, "momentum", "nesterov", "num_iterations")
            return split_matrices(group, shared, muon, adamw_options((others.beta1, others.beta2), eps=others.eps))
        case SOAPRule() | ShampooRule():
            betas = (rule.beta1, rule.beta2)
            options = named | {"betas": betas, "num_steps": 0} | _fields(rule, "eps", "refresh_every", "max_dim")
            if isinstance(rule, ShampooRule):
                options |= _fields(rule, "root_eps")
            return split_matrices(group, shared, options, adamw_options(betas, eps=rule.eps))


def _fields(rule: OptimizerRule, *names: str) -> dict[str, Any]:
    return {name: getattr(rule, name) for name in names}
