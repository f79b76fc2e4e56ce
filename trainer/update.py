"""The update: from the gradient of a step to its weights."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.clipping.build import build_clipper
from trainer.config.spike_policies import SkipSpikesConfig
from trainer.config.train import LoopConfig
from trainer.gradient_norms import ROLES, GroupedNorms
from trainer.optimizers.grouped import undone_where
from trainer.skipping import SpikeSkipper, step_unless


class UpdateOutcome(NamedTuple):
    """What an update tells of itself, on the device.

    grad_norm: float32 scalar, the L2 norm of the whole gradient before clipping.
    skipped: bool scalar, whether the step left everything as it was; None where no step is ever skipped.
    group_norms_G: float64, the norm by parts of the model (`trainer.gradient_norms`).
    ratios_R: float64, by role the norm of the update over that of the parameters, then that of the gradient over it,
        then the spread of the experts' gradient before clipping; 0 where there are no parameters. None where the update
        was not measured.
    """

    grad_norm: Tensor
    skipped: Tensor | None
    group_norms_G: Tensor
    ratios_R: Tensor | None


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
        policy = config.spike_policy
        self.skipper = SpikeSkipper(policy).to(device) if isinstance(policy, SkipSpikesConfig) else None
        self._optimizer = optimizer
        self._norms = GroupedNorms(model, device=device)
        self._measure_every = config.measure_updates_every_steps

    def step(self, loss: Tensor, *, number: int) -> UpdateOutcome:
        """Updates the weights by their gradients; never waits for the device.

        A skipped step changes neither weights nor the optimizer's state nor what clipping has learned, only the window
        of the skipping itself. Measuring an update takes a copy of all trained parameters for as long as it lasts.

        Args:
            loss: scalar, of the whole step.
            number: of the step, from 1.
        """
        grad_norm, group_norms_G = self._norms.of_gradient()
        skipped = None if self.skipper is None else self.skipper.observe(loss, grad_norm)
        measured = self._measure_every is not None and number % self._measure_every == 0
        spread_3 = self._norms.expert_spread() if measured else None
        with undone_where(skipped, list(self.clipper.buffers())):
            self.clipper.clip(grad_norm)
        before = [parameter.detach().clone() for parameter in self._norms.parameters] if measured else []
        step_unless(skipped, self._optimizer)
        ratios_R = None if spread_3 is None else torch.cat([self._ratios(before, group_norms_G), spread_3])
        return UpdateOutcome(grad_norm, skipped, group_norms_G, ratios_R)

    @torch.no_grad()
    def _ratios(self, before: list[Tensor], group_norms_G: Tensor) -> Tensor:
        least = torch.finfo(torch.float64).tiny
        size_R = self._norms.of(before).clamp(min=least)
        changes = [old.sub_(parameter) for old, parameter in zip(before, self._norms.parameters, strict=True)]
        return torch.cat([self._norms.of(changes) / size_R, group_norms_G[: len(ROLES)] / size_R])
