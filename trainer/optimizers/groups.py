"""Parameter groups: one per role, split into what is decayed and what is not."""

from collections.abc import Iterator
from typing import NamedTuple, get_args

from torch import nn

from trainer.config.optimizers import ParameterRole
from trainer.model.build import parameter_roles


class RoleGroup(NamedTuple):
    """Parameters of one role that are all decayed or all not.

    decayed: whether weight decay applies: to matrices, not to norm gains or any other vector.
    """

    role: ParameterRole
    decayed: bool
    parameters: list[nn.Parameter]


def role_groups(model: nn.Module) -> tuple[RoleGroup, ...]:
    """Returns the non-empty groups; each parameter that is trained is in exactly one, in the order of the model."""
    return tuple(_role_groups(model))


def _role_groups(model: nn.Module) -> Iterator[RoleGroup]:
    roles = parameter_roles(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for role in get_args(ParameterRole):
        of_role = [parameter for name, parameter in trained.items() if roles[name] == role]
        for decayed in (True, False):
            parameters = [parameter for parameter in of_role if (parameter.dim() >= 2) == decayed]
            if parameters:
                yield RoleGroup(role, decayed, parameters)
