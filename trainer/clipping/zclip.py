"""ZClip: clipping against the running mean and variance of the gradient's norm."""

import torch
from torch import Tensor, nn

from trainer.clipping.base import Clipper, trained_parameters
from trainer.config.clipping import ZClipConfig

_SMALLEST_DEVIATION = 1e-6  # of the authors' implementation: norms that never differed make no division by zero


class ZClip(Clipper):
    """Clips a norm whose z = (norm - mean) / deviation exceeds the threshold to mean + threshold^2 / z * deviation.

    The further out a norm lies, the nearer to the mean it ends. Mean and variance start as those of the first
    `warmup_steps` norms; after them each step's norm, clipped if it was, moves first the mean and then, by its distance
    from the new mean, the variance.

    Source: Kumar et al. 2025, arXiv:2504.02507, in the authors' implementation, whose default option this is. A fixed
    bound besides (`max_norm`) is theirs too, and does not enter the statistics.
    """

    num_norms: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, config: ZClipConfig, model: nn.Module) -> None:
        super().__init__(config, model)
        self.config = config
        self._trained = trained_parameters(model)
        # float64: the variance of norms that are almost equal is a difference of almost equal numbers.
        for name in ("num_norms", "mean", "variance"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def clip(self, grad_norm: Tensor) -> None:
        norm = grad_norm.double()
        threshold = self.config.threshold
        deviation = self.variance.sqrt()
        z = (norm - self.mean) / (deviation + _SMALLEST_DEVIATION)
        is_warm = self.num_norms >= self.config.warmup_steps
        is_outlier = is_warm & (z > threshold)
        kept = torch.where(is_outlier, self.mean + threshold**2 / z * deviation, norm)
        self._learn(kept, is_warm)
        if self.config.max_norm is not None:
            kept = kept.clamp(max=self.config.max_norm)
        factor = torch.where(kept < norm, kept / norm, 1.0).float()
        for parameter in self._trained:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def _learn(self, norm: Tensor, is_warm: Tensor) -> None:
        """Takes the norm into mean and variance: of all norms so far in the warm-up (Welford), exponential after it."""
        self.num_norms += 1
        share = torch.where(is_warm, 1.0 - self.config.decay, 1.0 / self.num_norms)
        old_mean = self.mean.clone()
        self.mean.lerp_(norm, share)
        distance = torch.where(is_warm, norm - self.mean, norm - old_mean)
        self.variance.lerp_(distance * (norm - self.mean), share)
