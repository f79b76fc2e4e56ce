"""The update: from the gradient of a step to its weights."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.clipping.base import trained_parameters
from trainer.clipping.build import build_clipper
from trainer.config.train import LoopConfig
from trainer.optimizers.grouped import undone_where
from trainer.skipping import SpikeSkipper, step_unless


class UpdateOutcome(NamedTuple):
    """What an update tells of itself, on the device.

    grad_norm: float32 scalar, the L2 norm of the whole gradient before clipping.
    skipped: bool scalar, whether the step left everything as it was; None where no step is ever skipped.
    """

    grad_norm: Tensor
    skipped: Tensor | None


class Update(nn.Module):
    """Measures the gradient, clips it and lets the optimizer step, or skips all of that.

    Its buffers, those of the clipping method and of the skipping, are saved with the optimizer's state.

    Args:
        config: of the loop.
        model: the bare model.
        optimizer: over its trained parameters.
        device: where they are.
    """

    def __init__(
        self, config: LoopConfig, *, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        super().__init__()
        self.clipper = build_clipper(config.gradient_clipping, model, device=device)
        self.skipper = None if config.skip_spikes is None else SpikeSkipper(config.skip_spikes).to(device)
        self._optimizer = optimizer
        self._trained = trained_parameters(model)

    def step(self, loss: Tensor) -> UpdateOutcome:
        """Updates the weights by their gradients; never waits for the device.

        A skipped step changes neither weights nor the optimizer's state nor what clipping has learned, only the window
        of the skipping itself.

        Args:
            loss: scalar, of the whole step.
        """
        grad_norm = torch.nn.utils.get_total_norm(
            [parameter.grad for parameter in self._trained if parameter.grad is not None]
        )
        skipped = None if self.skipper is None else self.skipper.observe(loss, grad_norm)
        with undone_where(skipped, list(self.clipper.buffers())):
            self.clipper.clip(grad_norm)
        step_unless(skipped, self._optimizer)
        return UpdateOutcome(grad_norm, skipped)
