"""Builds a model with its initial weights, and says what role each parameter plays in the optimizer."""

import hashlib
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from trainer.attention.base import Attention
from trainer.config.model import ModelConfig
from trainer.config.optimizers import ParameterRole
from trainer.model.dense_mlp import DenseMLP
from trainer.model.moe_layer import Experts, MoELayer
from trainer.model.transformer import Transformer
from trainer.routers.base import Router

_CUT_STDS = 3.0  # OLMoE, arXiv:2409.02060, section 4.2.2: a normal cut there kept training stable


def build_model(config: ModelConfig, *, seed: int, device: torch.device) -> Transformer:
    """Returns a float32 model in training mode, the same to the last bit for the same config and seed.

    Every matrix is drawn from a normal of standard deviation `init_std` (or what `init` makes of it) cut at 3 of them;
    those that write into the residual stream are then scaled by 1/sqrt(2 * num_layers) (Radford et al. 2019, GPT-2,
    section 2.3). Norm gains are 1; what an attention variant or a mixture-of-experts layer starts otherwise, it says
    itself (`Attention.special_start`, `MoELayer.special_start`). Each parameter draws
    from a generator seeded with the seed and its own name, on the CPU, so the weights do not depend on the device, the
    global random state stays untouched, and two configs of one seed agree in the parameters they share: an arm of a
    comparison starts where the other does.

    On the meta device the model has shapes and no weights.
    """
    with torch.device("meta"):
        model = Transformer(config)
    if device.type == "meta":
        return model
    model.to_empty(device=device)
    residual = _residual_parameters(model) if config.init.scale_residual else set()
    roles = parameter_roles(model)
    special = _special_starts(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = _generator(seed=seed, name=name)
            if (start := special.get(name)) is not None and (value := start(generator)) is not None:
                parameter.copy_(value)
                continue
            if parameter.dim() < 2:
                assert name.endswith(".gain"), f"{name} is a vector but no norm gain: say here how it starts"
                parameter.fill_(1.0)
                continue
            std = _initial_std(config, roles[name], parameter.shape)
            drawn = _draw(parameter.shape, std=std, generator=generator)
            if name in residual:
                drawn *= 1.0 / math.sqrt(2 * config.num_layers)
            parameter.copy_(drawn)
        for buffer in model.buffers():
            buffer.zero_()
    return model


def parameter_roles(model: nn.Module) -> dict[str, ParameterRole]:
    """Returns the role of every parameter by its name; exactly one each.

    `embedding` is the token embedding and an untied output projection, `router` every parameter of a router,
    `expert` the routed experts' stacked weights, `dense` all the rest.
    """
    roles: dict[str, ParameterRole] = {name: "dense" for name, _ in model.named_parameters()}
    for prefix, module in model.named_modules():
        if isinstance(module, Transformer):
            tables = ("embedding.weight",) if module.head is None else ("embedding.weight", "head.weight")
            roles.update({_join(prefix, name): "embedding" for name in tables})
        elif isinstance(module, Router):
            roles.update({_join(prefix, name): "router" for name, _ in module.named_parameters()})
        elif isinstance(module, Experts):
            roles.update({_join(prefix, name): "expert" for name, _ in module.named_parameters()})
    return roles


def _residual_parameters(model: nn.Module) -> set[str]:
    """Returns the names of the parameters that write into the residual stream, as their modules declare them."""
    return {
        _join(prefix, name)
        for prefix, module in model.named_modules()
        if isinstance(module, Attention | DenseMLP | Experts)
        for name in module.residual_weights
    }


def _special_starts(model: nn.Module) -> dict[str, Callable[[torch.Generator], Tensor | None]]:
    """Returns, for the parameters of modules that know better, what gives their start if the rule does not fit."""
    return {
        _join(prefix, name): partial(module.special_start, name)
        for prefix, module in model.named_modules()
        if isinstance(module, Attention | MoELayer)
        for name, _ in module.named_parameters()
    }


def _initial_std(config: ModelConfig, role: ParameterRole, shape: torch.Size) -> float:
    """Returns the standard deviation that a matrix of this role starts with, before any scaling by depth."""
    init = config.init
    std = config.init_std
    if init.fan_in_scale is not None and role != "embedding":
        # The experts' stacked down projections alone, a matrix per expert, have the input dimension first.
        num_inputs = shape[-2] if role == "expert" and len(shape) == 3 else shape[-1]
        std = math.sqrt(init.fan_in_scale / num_inputs)
    return std * {"expert": init.expert_factor, "router": init.router_factor}.get(role, 1.0)


def _generator(*, seed: int, name: str) -> torch.Generator:
    """Returns the CPU generator of this seed and parameter name."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def _draw(shape: torch.Size, *, std: float, generator: torch.Generator) -> Tensor:
    """Returns a float32 CPU tensor from the truncated normal."""
    drawn = torch.empty(shape, dtype=torch.float32)
    return nn.init.trunc_normal_(drawn, std=std, a=-_CUT_STDS * std, b=_CUT_STDS * std, generator=generator)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
