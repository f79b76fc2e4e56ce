"""Shampoo: gradients whitened by the roots of what their rows and columns have in common.

Letters: M rows, N columns, of any number of matrices stacked before them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.optimizers import GroupOverrides, ShampooConfig
from trainer.optimizers.adamw import adamw_options, adamw_update, betas
from trainer.optimizers.base import OptimizerBuilder
from trainer.optimizers.gram import GRAMS, eigh_of_gram, gram_of, new_grams
from trainer.optimizers.grouped import GroupedOptimizer, decay, gradients
from trainer.optimizers.groups import RoleGroup, rate_options, role_groups
from trainer.optimizers.muon import split_matrices

_SMALLEST = 1e-30  # a matrix that never had a gradient divides by no zero

_ROOT = {"left_gram": "left_root", "right_gram": "right_root"}


class Shampoo(OptimizerBuilder):
    """Shampoo for matrices that map hidden features to hidden features, AdamW for all else, in one optimizer.

    Each expert is a matrix of its own. What AdamW updates is what it updates beside Muon. The update of a matrix has
    the length AdamW's would have, so that learning rate and decay carry over.

    Sources: Gupta et al. 2018, arXiv:1802.09568, algorithm 1; averages, their bias and the length (grafting): Shi et
    al. 2023 (Distributed Shampoo), arXiv:2309.06497.
    """

    def __init__(self, config: ShampooConfig) -> None:
        self.config = config

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = [options for group in role_groups(model) for options in self._options(group)]
        return GroupedOptimizer(groups, {"shampoo": shampoo_update, "adamw": adamw_update})

    def _options(self, group: RoleGroup) -> list[dict[str, Any]]:
        config = self.config
        overrides: GroupOverrides = getattr(config, group.role)
        shared, group_betas = rate_options(group, config, overrides), betas(config, overrides)
        others = adamw_options(group_betas, eps=config.eps)
        if group.role in ("router", "embedding"):
            return [shared | others]
        names = ("eps", "root_eps", "refresh_every", "max_dim")
        options = {name: getattr(config, name) for name in names}
        shampoo = {"rule": "shampoo", "betas": group_betas, "num_steps": 0} | options
        return split_matrices(group, shared, shampoo, others)


def shampoo_update(parameters: Sequence[Tensor], states: Sequence[dict[str, Tensor]], group: Mapping[str, Any]) -> None:
    """Moves each matrix along L^(-1/4) M R^(-1/4), M the mean gradient, as far as AdamW would; an `UpdateRule`.

    L and R are the running means of G G^T and G^T G. Where one side is longer than `max_dim` the other's root is
    -1/2. The roots are found anew every `refresh_every` steps, by an eigendecomposition; those steps wait for the
    device. `root_eps` times the largest eigenvalue is added to all of them.

    Options: `lr`, `weight_decay`, `betas`, `eps`, `root_eps`, `refresh_every`, `max_dim`, `num_steps`.
    """
    beta1, beta2 = group["betas"]
    for parameter, gradient, state in zip(parameters, gradients(parameters), states, strict=True):
        is_new = not state
        if is_new:
            state.update(_start(gradient, max_dim=group["max_dim"]))
        sides = [side for side in GRAMS if side in state]
        state["num_updates"] += 1
        share1, share2 = (1.0 - beta ** state["num_updates"] for beta in (beta1, beta2))
        for side in sides:
            state[side].lerp_(gram_of(gradient, side), 1.0 - beta2)
            if is_new or group["num_steps"] % group["refresh_every"] == 0:
                root = inverse_root(state[side], degree=2 * len(sides), relative_eps=group["root_eps"])
                state[_ROOT[side]].copy_(root)
        average = state["exp_avg"].lerp_(gradient, 1.0 - beta1) / share1
        variance = state["exp_avg_sq"].lerp_(gradient.square(), 1.0 - beta2) / share2
        direction = average
        if "left_root" in state:
            direction = state["left_root"] @ direction
        if "right_root" in state:
            direction = direction @ state["right_root"]
        adamw = average / (variance.sqrt() + group["eps"])
        direction = direction * (_norm(adamw) / _norm(direction).clamp(min=_SMALLEST))
        decay(parameter, group)
        parameter.add_(direction, alpha=-group["lr"])


def inverse_root(gram: Tensor, *, degree: int, relative_eps: float) -> Tensor:
    """Returns (A + relative_eps * lambda_max * I)^(-1/degree) of each positive semidefinite matrix A.

    The scale of A drops out of an update whose length is set elsewhere, so A comes without its bias correction.
    """
    values, vectors = eigh_of_gram(gram)
    values = values.clamp(min=0.0)
    raised = (values + relative_eps * values[..., -1:]).clamp(min=_SMALLEST)
    return (vectors * raised.pow(-1.0 / degree)[..., None, :]) @ vectors.mT


def _start(gradient: Tensor, *, max_dim: int) -> dict[str, Tensor]:
    """Returns the state before the first step."""
    grams = new_grams(gradient, max_dim=max_dim)
    return {
        "num_updates": torch.zeros((), dtype=torch.float32, device=gradient.device),
        "exp_avg": torch.zeros_like(gradient),
        "exp_avg_sq": torch.zeros_like(gradient),
        **grams,
        **{_ROOT[side]: torch.zeros_like(gram) for side, gram in grams.items()},
    }


def _norm(matrices: Tensor) -> Tensor:
    """Returns the Frobenius norm of each matrix, in a shape that broadcasts against it."""
    return torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
