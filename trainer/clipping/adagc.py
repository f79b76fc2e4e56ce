"""AdaGC: clipping each tensor's gradient against its own history.

Letters: P tensors with a history of their own: a parameter, or a matrix or bias of a stack of experts.
"""

import math

import torch
from torch import Tensor, nn

from trainer.clipping.base import Clipper
from trainer.config.clipping import AdaGCConfig
from trainer.model.build import parameter_roles


class AdaGC(Clipper):
    """Scales each tensor's gradient to at most `max_ratio` times the running mean of its clipped norms.

    In the first `warmup_steps` steps the whole gradient is clipped to `max_norm`, and the mean of a tensor is the least
    norm it had.

    Source: Wang et al. 2025, arXiv:2502.11034, as in `pytorch_optimizer.AdaGC`. Ours: each matrix of a stack of
    experts is a tensor of its own, as in models that keep them apart; and a gradient of zeros, which is that of an
    expert no token chose, says nothing of the expert's norms: it leaves the mean alone, which would else be 0 for ever
    once the warm-up took it for the least. A tensor without any history is not clipped and starts one.
    """

    num_steps: Tensor
    mean_norm_P: Tensor

    def __init__(self, config: AdaGCConfig, model: nn.Module) -> None:
        super().__init__(config, model)
        self.config = config
        roles = parameter_roles(model)
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._trained = [parameter for _, parameter in trained]
        self._shapes = [_stack_shape(parameter) if roles[name] == "expert" else (1,) for name, parameter in trained]
        self._num_tensors = [math.prod(shape) for shape in self._shapes]
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean_norm_P", torch.full((sum(self._num_tensors),), torch.inf))

    @torch.no_grad()
    def clip(self, grad_norm: Tensor) -> None:
        norms_P = torch.cat(
            [_norms(parameter, number) for parameter, number in zip(self._trained, self._num_tensors, strict=True)]
        )
        is_warm = self.num_steps >= self.config.warmup_steps
        whole = (self.config.max_norm / grad_norm).clamp(max=1.0)
        own_P = (self.config.max_ratio * self.mean_norm_P / norms_P).clamp(max=1.0)
        factor_P = torch.where(is_warm, own_P.where(norms_P > 0, 1.0), whole)
        self._learn(norms_P * factor_P, is_warm)
        parts = factor_P.split(self._num_tensors)
        for parameter, shape, factor in zip(self._trained, self._shapes, parts, strict=True):
            if parameter.grad is not None:
                parameter.grad.mul_(factor.view(*shape, *[1] * (parameter.dim() - len(shape))))

    def _learn(self, norms_P: Tensor, is_warm: Tensor) -> None:
        self.num_steps += 1
        old_P = self.mean_norm_P
        least_P = torch.minimum(old_P, norms_P)
        moved_P = torch.where(old_P.isinf(), norms_P, self.config.decay * old_P + (1.0 - self.config.decay) * norms_P)
        new_P = torch.where(is_warm, moved_P, least_P)
        self.mean_norm_P.copy_(torch.where(norms_P > 0, new_P, old_P))


def _stack_shape(parameter: Tensor) -> tuple[int, ...]:
    """Returns the dimensions before those of one expert's matrix or vector."""
    return tuple(parameter.shape[:-2]) if parameter.dim() > 2 else tuple(parameter.shape[:1])


def _norms(parameter: nn.Parameter, num_tensors: int) -> Tensor:
    """Returns the L2 norms of the gradient's tensors, float32 [num_tensors]; zeros without a gradient."""
    if parameter.grad is None:
        return torch.zeros(num_tensors, device=parameter.device)
    return torch.linalg.vector_norm(parameter.grad.reshape(num_tensors, -1), dim=1, dtype=torch.float32)
