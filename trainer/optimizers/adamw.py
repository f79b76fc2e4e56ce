"""AdamW with its own settings per parameter role."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from trainer.config.optimizers import AdamWConfig, GroupOverrides
from trainer.optimizers.base import OptimizerBuilder
from trainer.optimizers.grouped import gradients
from trainer.optimizers.groups import rate_options, role_groups


class BetasConfig(Protocol):
    """A config with the betas of AdamW."""

    @property
    def beta1(self) -> float: ...

    @property
    def beta2(self) -> float: ...


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
        for group in role_groups(model):
            overrides: GroupOverrides = getattr(config, group.role)
            groups.append(rate_options(group, config, overrides) | {"betas": betas(config, overrides)})
        return torch.optim.AdamW(groups, lr=config.lr, eps=config.eps, fused=True)


def betas(config: BetasConfig, overrides: GroupOverrides) -> tuple[float, float]:
    """Returns the betas of a group: the overrides', and where they are silent the config's."""
    beta1 = config.beta1 if overrides.beta1 is None else overrides.beta1
    beta2 = config.beta2 if overrides.beta2 is None else overrides.beta2
    return beta1, beta2


def adamw_options(group_betas: tuple[float, float], *, eps: float) -> dict[str, Any]:
    """Returns the options of a group that `adamw_update` updates, rate and decay excepted."""
    return {"rule": "adamw", "betas": group_betas, "eps": eps, "fused": True}


def adamw_update(parameters: Sequence[Tensor], states: Sequence[dict[str, Tensor]], group: Mapping[str, Any]) -> None:
    """The same update as an `UpdateRule`, for optimizers that leave some parameters to AdamW.

    Options: `lr`, `betas`, `eps`, `weight_decay`, and `fused: True`, by which torch knows, when it loads a state, that
    step counts stay on the parameters' device.
    """
    for parameter, state in zip(parameters, states, strict=True):
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
    beta1, beta2 = group["betas"]
    adamw(
        list(parameters),
        gradients(parameters),
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        fused=group["fused"],
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
