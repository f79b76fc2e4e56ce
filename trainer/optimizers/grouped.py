"""One torch optimizer whose parameter groups may follow different rules."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

UpdateRule = Callable[[Sequence[Tensor], Sequence[dict[str, Tensor]], Mapping[str, Any]], None]
"""Updates the parameters of a group in place, all of which have a gradient. Takes the parameters, their states (empty
before the first step; tensors only, so that a checkpoint holds them) and the group's options. Never waits for the
device."""


class GroupedOptimizer(torch.optim.Optimizer):
    """Updates each group by the rule that its option `rule` names.

    All rules of a step see gradients of the same backward pass, so the order of the groups does not matter.

    Args:
        groups: parameter groups with plain values as options.
        rules: what the groups' `rule` may name.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], rules: Mapping[str, UpdateRule]) -> None:
        super().__init__(groups, defaults={})
        self._rules = dict(rules)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Does one update of every parameter that has a gradient."""
        assert closure is None, "the training step computes its loss and gradients itself"
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            self._rules[group["rule"]](parameters, [self.state[parameter] for parameter in parameters], group)


def gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Returns the gradients of parameters that all have one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def decay(parameter: Tensor, group: Mapping[str, Any]) -> None:
    """Shrinks the parameter by the learning rate times the decay, independent of the gradient.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, with the decay scaled by the learning rate.
    """
    if group["weight_decay"]:
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
