"""SOAP: AdamW in the eigenbasis of Shampoo's preconditioner.

Letters: M rows, N columns, of any number of matrices stacked before them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.optimizers import GroupOverrides, SOAPConfig
from trainer.optimizers.adamw import adamw_options, adamw_update, betas
from trainer.optimizers.base import OptimizerBuilder
from trainer.optimizers.gram import GRAMS, eigh_of_gram, gram_of, new_grams
from trainer.optimizers.grouped import GroupedOptimizer, decay, gradients
from trainer.optimizers.groups import RoleGroup, rate_options, role_groups
from trainer.optimizers.muon import split_matrices


class SOAP(OptimizerBuilder):
    """SOAP for matrices that map hidden features to hidden features, AdamW for all else, in one optimizer.

    Each expert is a matrix with bases of its own. What AdamW updates is what it updates beside Muon.

    Source: Vyas et al. 2024, arXiv:2409.11321, algorithm 3.
    """

    def __init__(self, config: SOAPConfig) -> None:
        self.config = config

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = [options for group in role_groups(model) for options in self._options(group)]
        return GroupedOptimizer(groups, {"soap": soap_update, "adamw": adamw_update})

    def _options(self, group: RoleGroup) -> list[dict[str, Any]]:
        config = self.config
        overrides: GroupOverrides = getattr(config, group.role)
        shared, group_betas = rate_options(group, config, overrides), betas(config, overrides)
        others = adamw_options(group_betas, eps=config.eps)
        if group.role in ("router", "embedding"):
            return [shared | others]
        names = ("eps", "refresh_every", "max_dim")
        soap = {"rule": "soap", "betas": group_betas, "num_steps": 0} | {name: getattr(config, name) for name in names}
        return split_matrices(group, shared, soap, others)


def soap_update(parameters: Sequence[Tensor], states: Sequence[dict[str, Tensor]], group: Mapping[str, Any]) -> None:
    """Does Adam on each matrix rotated into the eigenbases of its gradients' mean G G^T and G^T G; an `UpdateRule`.

    The first step finds the bases and moves nothing, so that no gradient is rotated by what it alone decides. From then
    on a basis follows its mean by one power iteration and a QR decomposition every `refresh_every` steps. A side longer
    than `max_dim` is not rotated. Only the first step waits for the device.

    Options: `lr`, `weight_decay`, `betas`, `eps`, `refresh_every`, `max_dim`, `num_steps`.
    """
    beta1, beta2 = group["betas"]
    for parameter, gradient, state in zip(parameters, gradients(parameters), states, strict=True):
        decay(parameter, group)
        if not state:
            state.update(_start(gradient, beta2=beta2, max_dim=group["max_dim"]))
            continue
        state["num_updates"] += 1
        average = state["exp_avg"].lerp_(gradient, 1.0 - beta1)
        variance = state["exp_avg_sq"].lerp_(_rotated(gradient, state).square(), 1.0 - beta2)
        direction = _rotated_back(_rotated(average, state) / (variance.sqrt() + group["eps"]), state)
        num_updates = state["num_updates"]
        bias = (1.0 - beta2**num_updates).sqrt() / (1.0 - beta1**num_updates)
        parameter.sub_(direction * (group["lr"] * bias))
        for side in GRAMS:
            if side in state:
                state[side].lerp_(gram_of(gradient, side), 1.0 - beta2)
        if group["num_steps"] and group["num_steps"] % group["refresh_every"] == 0:
            for side in GRAMS:
                if side in state:
                    _refresh(state, side)


_BASIS = {"left_gram": "left_basis", "right_gram": "right_basis"}


def _start(gradient: Tensor, *, beta2: float, max_dim: int) -> dict[str, Tensor]:
    """Returns the state after the first step."""
    grams = new_grams(gradient, max_dim=max_dim)
    state = {
        "num_updates": torch.zeros((), dtype=torch.float32, device=gradient.device),
        "exp_avg": torch.zeros_like(gradient),
        "exp_avg_sq": torch.zeros_like(gradient),
    }
    for side, gram in grams.items():
        state[side] = gram.lerp_(gram_of(gradient, side), 1.0 - beta2)
        # Largest eigenvalue first, as the refreshes order them.
        state[_BASIS[side]] = eigh_of_gram(gram)[1].flip(-1).contiguous()
    return state


def _rotated(matrices: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Returns Q_left^T X Q_right."""
    if "left_basis" in state:
        matrices = state["left_basis"].mT @ matrices
    return matrices @ state["right_basis"] if "right_basis" in state else matrices


def _rotated_back(matrices: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Returns Q_left X Q_right^T."""
    if "left_basis" in state:
        matrices = state["left_basis"] @ matrices
    return matrices @ state["right_basis"].mT if "right_basis" in state else matrices


def _refresh(state: dict[str, Tensor], side: str) -> None:
    """Moves a basis towards the eigenvectors of its mean, in falling order of their eigenvalues, and the second moments
    with it.

    Source: Vyas et al. 2024, arXiv:2409.11321, algorithm 4.
    """
    basis, variance = state[_BASIS[side]], state["exp_avg_sq"]
    product = state[side] @ basis
    order = (basis * product).sum(dim=-2).argsort(dim=-1, descending=True)
    by_row = side == "left_gram"
    variance.copy_(
        variance.take_along_dim(order[..., :, None] if by_row else order[..., None, :], -2 if by_row else -1)
    )
    basis.copy_(torch.linalg.qr(product.take_along_dim(order[..., None, :], dim=-1)).Q)
