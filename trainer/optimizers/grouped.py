"""One torch optimizer whose parameter groups may follow different rules."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

UpdateRule = Callable[[Sequence[Tensor], Sequence[dict[str, Tensor]], Mapping[str, Any]], None]
"""Updates the parameters of a group in place, all of which have a gradient. Takes the parameters, their states (empty
before the first step; tensors only, so that a checkpoint holds them, each changed in place) and the group's options.
Waits for the device only where it says so."""


class GroupedOptimizer(torch.optim.Optimizer):
    """Updates each group by the rule that its option `rule` names.

    All rules of a step see gradients of the same backward pass, so the order of the groups does not matter.

    Args:
        groups: parameter groups with plain values as options. An option `num_steps` counts the steps, skipped ones
            included: unlike a count on the device it can be asked without waiting.
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
            self._update(group, skipped=None)
        self.count_step()

    @torch.no_grad()
    def step_where_not(self, skipped: Tensor) -> None:
        """Does one update and, where the bool scalar `skipped` is true, takes it back, without waiting for the device.

        A group at a time, so that one group's parameters and states are what exists twice.
        """
        for group in self.param_groups:
            self._update(group, skipped=skipped)
        self.count_step()

    def count_step(self) -> None:
        """Notes that a step was done or skipped, for the rules that do something every so many steps."""
        for group in self.param_groups:
            if "num_steps" in group:
                group["num_steps"] += 1

    def _update(self, group: dict[str, Any], *, skipped: Tensor | None) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        states = [self.state[parameter] for parameter in parameters]
        kept = [*parameters, *(value for state in states for value in state.values())]
        with undone_where(skipped, kept):
            self._rules[group["rule"]](parameters, states, group)
        assert skipped is None or len(kept) == len(parameters) + sum(map(len, states)), (
            "no step is skipped before every parameter had its first"
        )


@contextmanager
def undone_where(skipped: Tensor | None, tensors: Sequence[Tensor]) -> Iterator[None]:
    """After the block, puts back what the tensors held before it if `skipped` is true; None never does.

    Costs a copy of the tensors while the block runs, and does not wait for the device.
    """
    before = [] if skipped is None else [tensor.clone() for tensor in tensors]
    yield
    if skipped is not None:
        with torch.no_grad():
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(torch.where(skipped, old, tensor))


def gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Returns the gradients of parameters that all have one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def decay(parameter: Tensor, group: Mapping[str, Any]) -> None:
    """Shrinks the parameter by the learning rate times the decay, independent of the gradient.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, with the decay scaled by the learning rate.
    """
    if group["weight_decay"]:
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
