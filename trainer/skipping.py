"""Steps without an update: which they are, and how everything stays as if they had not happened.

Nothing here waits for the device: on CUDA the host never learns that a step was skipped, the device writes the old
values back.

Letters: W steps of the window.
"""

import torch
from torch import Tensor, nn

from trainer.config.spike_policies import SkipSpikesConfig
from trainer.metrics.spikes import ONLINE_SIGMA_FLOOR
from trainer.optimizers.grouped import GroupedOptimizer


class SpikeSkipper(nn.Module):
    """Tells a step whose loss or gradient norm exceeds mean + `num_sigmas` deviations of the steps before it.

    Every step enters the window, skipped or not: a lasting change of level is followed, and does not skip all the rest
    of a run. The deviation is at least a thousandth of the mean, as for the spike events of the telemetry, which with
    the defaults name the same steps. A step that is not finite ends the run, skipped or not.

    Source: OLMo-core, `optim/skip_step_optimizer.py`; ours takes the population's deviation, adds the floor under it,
    and looks upward only.
    """

    num_steps: Tensor
    window_2W: Tensor
    """Losses and gradient norms, the newest last."""

    def __init__(self, config: SkipSpikesConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("window_2W", torch.zeros(2, config.window, dtype=torch.float64))

    @torch.no_grad()
    def observe(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Takes a step in and returns whether to skip its update, a bool scalar on the device.

        Args:
            loss, grad_norm: scalars of the whole step, the same on all workers.
        """
        size = self.config.window
        values_2 = torch.stack([loss.double(), grad_norm.double()])
        is_filled_W = torch.arange(size, device=values_2.device) >= size - self.num_steps
        num_filled = self.num_steps.clamp(1, size)
        mean_2 = self.window_2W.sum(dim=1) / num_filled
        distance_2W = (self.window_2W - mean_2[:, None]) * is_filled_W
        sigma_2 = (distance_2W.square().sum(dim=1) / num_filled).sqrt()
        sigma_2 = torch.maximum(sigma_2, ONLINE_SIGMA_FLOOR * mean_2.abs())
        is_spike_2 = values_2 > mean_2 + self.config.num_sigmas * sigma_2
        skipped = is_spike_2.any() & (self.num_steps >= self.config.min_window)
        self.window_2W.copy_(torch.cat([self.window_2W[:, 1:], values_2[:, None]], dim=1))
        self.num_steps += 1
        return skipped


def step_unless(skipped: Tensor | None, optimizer: torch.optim.Optimizer) -> None:
    """Does the optimizer's step unless `skipped` is true: parameters and states are then those before, to the last bit.

    On the CPU the host looks and does nothing: a skipped step is cheaper than any other. On CUDA, see `step_where_not`.
    """
    if skipped is None:
        optimizer.step()
    elif skipped.is_cuda:
        step_where_not(skipped, optimizer)
    elif not skipped:
        optimizer.step()
    elif isinstance(optimizer, GroupedOptimizer):
        optimizer.count_step()


def step_where_not(skipped: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """As `step_unless`, without the host knowing: the step is done, and undone where it had to be skipped.

    torch's fused kernels leave everything alone themselves when told that the gradient overflowed, at no cost. A
    GroupedOptimizer copies one parameter group with its states at a time: that is what skipping costs there, the memory
    of the largest group and its states once more, and two passes over all of them.
    """
    if isinstance(optimizer, GroupedOptimizer):
        optimizer.step_where_not(skipped)
        return
    assert optimizer.defaults.get("fused"), "of torch's optimizers the fused ones can skip a step on the device"
    overflowed: Tensor = skipped.to(torch.float32)
    optimizer.found_inf = overflowed  # pyright: ignore[reportAttributeAccessIssue]  # torch's Adam.step reads it
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]
