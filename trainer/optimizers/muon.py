"""Muon: momentum whose matrices are orthogonalised before they are applied.

Letters: M rows, N columns, of any number of matrices stacked before them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.optimizers import GroupOverrides, MomentumOverrides, MuonConfig
from trainer.optimizers.adamw import adamw_options, adamw_update, betas
from trainer.optimizers.base import OptimizerBuilder
from trainer.optimizers.grouped import GroupedOptimizer, decay, gradients
from trainer.optimizers.groups import RoleGroup, rate_options, role_groups

# Chosen by Jordan so that small singular values grow fastest; the others end in about [0.7, 1.2] instead of at 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_SMALLEST_NORM = 1e-7
_ADAMW_RMS = 0.2  # about what AdamW's updates have


class Muon(OptimizerBuilder):
    """Muon for matrices that map hidden features to hidden features, AdamW for all else, in one optimizer.

    Each expert is a matrix of its own: the stacked weights are orthogonalised slice by slice. Embeddings, output
    projections and routers have rows that stand for tokens or experts and not for features, and vectors have no
    singular values to even out: these go to AdamW. The update of an M x N matrix is scaled by 0.2 * sqrt(max(M, N)),
    which gives it the root mean square that AdamW's updates have, so that learning rate and decay carry over.

    Sources: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; scale and decay: Liu et al. 2025,
    arXiv:2502.16982, eq. 4.
    """

    def __init__(self, config: MuonConfig) -> None:
        self.config = config

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        groups = [options for group in role_groups(model) for options in self._options(group)]
        return GroupedOptimizer(groups, {"muon": muon_update, "adamw": adamw_update})

    def _options(self, group: RoleGroup) -> list[dict[str, Any]]:
        config = self.config
        overrides: GroupOverrides | MomentumOverrides = getattr(config, group.role)
        shared = rate_options(group, config, overrides)
        if isinstance(overrides, GroupOverrides):
            return [shared | adamw_options(betas(config, overrides), eps=config.eps)]
        muon = {
            "rule": "muon",
            "momentum": config.momentum if overrides.momentum is None else overrides.momentum,
            "nesterov": config.nesterov,
            "num_iterations": config.num_iterations,
        }
        return split_matrices(group, shared, muon, adamw_options((config.beta1, config.beta2), eps=config.eps))


def split_matrices(
    group: RoleGroup, shared: dict[str, Any], muon: dict[str, Any], others: dict[str, Any]
) -> list[dict[str, Any]]:
    """Returns the parameter groups of a role's matrices, with the options `muon`, and of all else, with `others`.

    Stacks of matrices are the experts', whose gate and up projections are two for each: another tensor of three
    dimensions, such as a convolution's, is no matrix.
    """
    num_dims = (3, 4) if group.role == "expert" else (2,)
    matrices = [parameter for parameter in group.parameters if parameter.dim() in num_dims]
    rest = [parameter for parameter in group.parameters if parameter.dim() not in num_dims]
    parts = ((matrices, muon), (rest, others))
    return [shared | options | {"params": parameters} for parameters, options in parts if parameters]


def muon_update(parameters: Sequence[Tensor], states: Sequence[dict[str, Tensor]], group: Mapping[str, Any]) -> None:
    """Moves each matrix along its orthogonalised momentum; an `UpdateRule`.

    Options: `lr`, `weight_decay`, `momentum`, `nesterov`, `num_iterations`.
    """
    momentum = group["momentum"]
    for parameter, gradient, state in zip(parameters, gradients(parameters), states, strict=True):
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].lerp_(gradient, 1.0 - momentum)
        direction = gradient.lerp(average, momentum) if group["nesterov"] else average
        decay(parameter, group)
        rms_scale = _ADAMW_RMS * math.sqrt(max(parameter.shape[-2:]))
        parameter.add_(
            orthogonalised(direction, num_iterations=group["num_iterations"]).to(parameter.dtype),
            alpha=-group["lr"] * rms_scale,
        )


def orthogonalised(matrices: Tensor, *, num_iterations: int) -> Tensor:
    """Returns about U V^T for each matrix U S V^T: its singular values pulled towards 1, its singular vectors kept.

    Newton-Schulz iterations of X <- a X + b (X X^T) X + c (X X^T)^2 X on X over its Frobenius norm. In bfloat16 on
    CUDA, where that is fastest and, by the source, enough; in float32 elsewhere. A matrix of zeros stays one.

    Args:
        matrices: (..., M, N).
        num_iterations: at 5, singular values above 1 % of the norm end within [0.6, 1.3].

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
    """
    a, b, c = _QUINTIC
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the smaller of the two products X X^T
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=_SMALLEST_NORM)
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x
