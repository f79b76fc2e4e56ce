"""Norms of parts of the gradient: of each role's parameters, and of each layer's router and experts.

Letters: G groups, P parameters, R roles.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from trainer.clipping.base import trained_parameters
from trainer.config.optimizers import ParameterRole
from trainer.model.build import parameter_roles
from trainer.model.moe_layer import MoELayer

ROLES: tuple[ParameterRole, ...] = ("router", "expert", "dense", "embedding")
"""In the order of the groups."""
assert set(ROLES) == set(get_args(ParameterRole)), "every parameter is in one group of a role"

NUM_SPREAD = 3
"""Of the experts' gradient: share of zeros, mean and largest magnitude."""

NUM_RATIOS = 2 * len(ROLES) + NUM_SPREAD
"""Of a step that measures its update: change over parameters, then gradient over parameters, for each role; then the
spread of the experts' gradient."""


def num_groups(num_layers: int) -> int:
    """Return the number of groups: the roles, then the routers of all MoE layers, then their experts."""
    return len(ROLES) + 2 * num_layers


class GradientNorm(NamedTuple):
    """The L2 norms of a gradient, on the device.

    total: float32 scalar.
    groups_G: float64, see `num_groups`.
    """

    total: Tensor
    groups_G: Tensor


class GroupedNorms:
    """Takes the norms of a model's parameters and gradients by group; never waits for the device.

    Args:
        model: whose trained parameters they are.
        device: where they are.
    """

    def __init__(self, model: nn.Module, *, device: torch.device) -> None:
        self.parameters = trained_parameters(model)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        roles = parameter_roles(model)
        layers = [module for module in model.modules() if isinstance(module, MoELayer)]
        members: list[Sequence[nn.Parameter]] = [
            [parameter for parameter in self.parameters if roles[names[id(parameter)]] == role] for role in ROLES
        ]
        members += [list(layer.router.parameters()) for layer in layers]
        members += [list(layer.experts.parameters()) for layer in layers]
        of_group = [{id(parameter) for parameter in group} for group in members]
        rows = [[float(id(parameter) in group) for parameter in self.parameters] for group in of_group]
        self._experts = members[ROLES.index("expert")]
        self._member_GP = torch.tensor(rows, dtype=torch.float64).view(len(rows), -1).to(device)

    def of_gradient(self) -> GradientNorm:
        """Return the norms of the gradient; a parameter without one counts as 0.

        The total is that of `torch.nn.utils.get_total_norm`, to the last bit where all gradients are of one type.
        """
        found = [(index, each.grad) for index, each in enumerate(self.parameters) if each.grad is not None]
        if not found:
            zero = self._member_GP.new_zeros(())
            return GradientNorm(zero.float(), self._member_GP.new_zeros(len(self._member_GP)))
        norms_P = _norms([gradient for _, gradient in found])
        return GradientNorm(torch.linalg.vector_norm(norms_P), self._grouped(norms_P, [index for index, _ in found]))

    def expert_spread(self) -> Tensor:
        """Return share of zeros, mean magnitude and largest magnitude of the experts' gradient, float64 [3].

        A parameter without gradient is all zeros; without experts all three are 0.
        """
        gradients = [each.grad for each in self._experts if each.grad is not None]
        if not gradients:
            empty = self._member_GP.new_zeros(NUM_SPREAD)
            empty[0] = float(bool(self._experts))
            return empty
        num_elements = sum(each.numel() for each in self._experts)
        num_nonzero = torch.stack([gradient.count_nonzero() for gradient in gradients]).sum()
        return torch.stack(
            (
                1.0 - num_nonzero.double() / num_elements,
                _norms(gradients, order=1.0).double().sum() / num_elements,
                _norms(gradients, order=math.inf).double().amax(),
            )
        )

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the norms by role, float64 [R], of tensors that go with `parameters` one by one."""
        return self._grouped(_norms(tensors), range(len(tensors)))[: len(ROLES)]

    def _grouped(self, norms_P: Tensor, present: Sequence[int]) -> Tensor:
        """A product with a matrix of 0 and 1: adding at indices would be float atomics on CUDA."""
        member_GP = self._member_GP
        if len(present) < member_GP.shape[1]:
            member_GP = member_GP[:, list(present)]
        return (member_GP @ norms_P.double().square()).sqrt()


def _norms(tensors: Sequence[Tensor], *, order: float = 2.0) -> Tensor:
    norms = torch._foreach_norm(list(tensors), order)  # pyright: ignore[reportPrivateImportUsage]  # what torch itself uses
    return torch.stack(norms)
