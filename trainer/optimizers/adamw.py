"""AdamW with its own settings per parameter role."""

import torch
from torch import nn

from trainer.config.optimizers import AdamWConfig, GroupOverrides, ParameterRole
from trainer.optimizers.base import OptimizerBuilder
from trainer.optimizers.groups import role_groups


class AdamW(OptimizerBuilder):
    """Decoupled weight decay; betas, decay and learning-rate factor per role, an override winning over the config.

    Uses torch's fused implementation: one pass over parameter, gradient and both moments, on CPU and CUDA.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2, with the decay scaled by the learning rate as
    torch does.
    """

    def __init__(self, config: AdamWConfig) -> None:
        self.config = config

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        config = self.config
        groups = []
        for role, decayed, parameters in role_groups(model):
            overrides = self._overrides(role)
            decay = config.weight_decay if overrides.weight_decay is None else overrides.weight_decay
            beta1 = config.beta1 if overrides.beta1 is None else overrides.beta1
            beta2 = config.beta2 if overrides.beta2 is None else overrides.beta2
            groups.append(
                {
                    "params": parameters,
                    "role": role,
                    "lr_scale": overrides.lr_scale,
                    "lr": config.lr * overrides.lr_scale,
                    "betas": (beta1, beta2),
                    "weight_decay": decay if decayed else 0.0,
                }
            )
        return torch.optim.AdamW(groups, lr=config.lr, eps=config.eps, fused=True)

    def _overrides(self, role: ParameterRole) -> GroupOverrides:
        config = self.config
        return {
            "dense": config.dense,
            "router": config.router,
            "expert": config.expert,
            "embedding": config.embedding,
        }[role]
