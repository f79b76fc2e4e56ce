"""Adafactor: factored second moments and updates relative to the size of the weights.

Letters: M rows, N columns, of any number of matrices stacked before them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.optimizers import AdafactorConfig, RateOverrides
from trainer.optimizers.base import OptimizerBuilder
from trainer.optimizers.grouped import GroupedOptimizer, decay, gradients
from trainer.optimizers.groups import rate_options, role_groups

_SMALLEST_SQUARE = 1e-30  # eps_1 of the paper


class Adafactor(OptimizerBuilder):
    """Memory of a row and a column per matrix; each expert of a stack is a matrix with clipping and scale of its own.

    torch has one, but it reads three numbers of every parameter back from the device in every step, takes a stack of
    experts for one tensor when it clips and scales, and lets 1/sqrt(step) overrule the schedule.

    Source: Shazeer and Stern 2018, arXiv:1804.04235, algorithm 4, without momentum, the schedule in place of rho_t.
    """

    def __init__(self, config: AdafactorConfig) -> None:
        self.config = config

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        config = self.config
        options = {
            "rule": "adafactor",
            "decay_exponent": config.decay_exponent,
            "clip_threshold": config.clip_threshold,
            "min_weight_rms": config.min_weight_rms,
        }
        groups = []
        for group in role_groups(model):
            overrides: RateOverrides = getattr(config, group.role)
            groups.append(rate_options(group, config, overrides) | options)
        return GroupedOptimizer(groups, {"adafactor": adafactor_update})


def adafactor_update(
    parameters: Sequence[Tensor], states: Sequence[dict[str, Tensor]], group: Mapping[str, Any]
) -> None:
    """Does algorithm 4 on each matrix and algorithm 5 on each vector; an `UpdateRule`.

    Options: `lr`, `weight_decay`, `decay_exponent`, `clip_threshold`, `min_weight_rms`.
    """
    for parameter, gradient, state in zip(parameters, gradients(parameters), states, strict=True):
        if not state:
            state.update(_start(parameter))
        state["num_updates"] += 1
        new_share = state["num_updates"] ** -group["decay_exponent"]  # 1 - beta_2t: all of it at the first step
        square = gradient.square().add_(_SMALLEST_SQUARE)
        if "variance" in state:
            update = gradient * state["variance"].lerp_(square, new_share).rsqrt()
        else:
            rows = state["row_variance"].lerp_(square.mean(dim=-1, keepdim=True), new_share)
            columns = state["column_variance"].lerp_(square.mean(dim=-2, keepdim=True), new_share)
            # V = R C / mean(R), as two factors: their product may be smaller than float32 can hold.
            update = gradient * (rows / rows.mean(dim=-2, keepdim=True)).rsqrt() * columns.rsqrt()
        update /= (_rms(update) / group["clip_threshold"]).clamp(min=1.0)
        update *= _rms(parameter).clamp(min=group["min_weight_rms"])
        decay(parameter, group)
        parameter.add_(update, alpha=-group["lr"])


def _start(parameter: Tensor) -> dict[str, Tensor]:
    """Returns the state before the first step."""
    count = torch.zeros((), dtype=torch.float32, device=parameter.device)
    if parameter.dim() < 2:
        return {"num_updates": count, "variance": torch.zeros_like(parameter)}
    return {
        "num_updates": count,
        "row_variance": parameter.new_zeros((*parameter.shape[:-1], 1)),
        "column_variance": parameter.new_zeros((*parameter.shape[:-2], 1, parameter.shape[-1])),
    }


def _rms(values: Tensor) -> Tensor:
    """Returns the root mean square of each matrix, or of a vector, in a shape that broadcasts against it."""
    dims = (-2, -1) if values.dim() >= 2 else (-1,)
    return values.square().mean(dim=dims, keepdim=True).sqrt()
