"""Clipping to a fixed norm of the whole gradient."""

import torch
from torch import Tensor, nn

from trainer.clipping.base import Clipper, trained_parameters
from trainer.config.clipping import GlobalNormConfig


class GlobalNorm(Clipper):
    """Scales all gradients by min(1, max_norm / norm), as torch does.

    Source: Pascanu et al. 2013, arXiv:1211.5063, algorithm 1.
    """

    def __init__(self, config: GlobalNormConfig, model: nn.Module) -> None:
        super().__init__(config, model)
        self.max_norm = config.max_norm
        self._trained = trained_parameters(model)

    def clip(self, grad_norm: Tensor) -> None:
        torch.nn.utils.clip_grads_with_norm_(self._trained, self.max_norm, grad_norm)
