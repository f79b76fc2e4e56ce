"""Parameter groups: one per role, split into what is decayed and what is not, with the role's overrides."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, get_args

from torch import nn

from trainer.config.optimizers import ParameterRole, RateOverrides
from trainer.model.build import parameter_roles


class RoleGroup(NamedTuple):
    """Parameters of one role that are all decayed or all not.

    decayed: whether weight decay applies: to matrices, not to norm gains or any other vector.
    """

    role: ParameterRole
    decayed: bool
    parameters: list[nn.Parameter]


class RatedConfig(Protocol):
    """What the config of every optimizer has."""

    @property
    def lr(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...


def role_groups(model: nn.Module) -> tuple[RoleGroup, ...]:
    """Returns the non-empty groups; each parameter that is trained is in exactly one, in the order of the model."""
    return tuple(_role_groups(model))


def rate_options(group: RoleGroup, config: RatedConfig, overrides: RateOverrides) -> dict[str, Any]:
    """Returns the part of a torch parameter group that every optimizer has: parameters, role, rate and decay."""
    decay = config.weight_decay if overrides.weight_decay is None else overrides.weight_decay
    return {
        "params": group.parameters,
        "role": group.role,
        "lr_scale": overrides.lr_scale,
        "lr": config.lr * overrides.lr_scale,
        "weight_decay": decay if group.decayed else 0.0,
    }


def _role_groups(model: nn.Module) -> Iterator[RoleGroup]:
    roles = parameter_roles(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for role in get_args(ParameterRole):
        of_role = [parameter for name, parameter in trained.items() if roles[name] == role]
        for decayed in (True, False):
            num_dims = 3 if role == "expert" else 2  # the biases of experts are a matrix, one row each
            parameters = [parameter for parameter in of_role if (parameter.dim() >= num_dims) == decayed]
            if parameters:
                yield RoleGroup(role, decayed, parameters)
