"""Warm-up, stable, decay."""

from trainer.config.schedules import WarmupStableDecayScheduleConfig
from trainer.schedules.base import Schedule


class WarmupStableDecaySchedule(Schedule):
    """Warm-up, constant 1, then linear over the last `decay_fraction` of the steps to exactly `final_fraction`.

    Source: Hu et al. 2024 (MiniCPM), arXiv:2404.06395, section 4; linear decay: Hagele et al. 2024, arXiv:2405.18392.
    """

    def __init__(self, config: WarmupStableDecayScheduleConfig, *, num_steps: int) -> None:
        super().__init__(config, num_steps=num_steps)
        self.final_fraction = config.final_fraction
        wanted = max(round(config.decay_fraction * num_steps), 1) if config.decay_fraction else 0
        self.num_decay_steps = min(wanted, self.last_step - self.num_warmup_steps)

    def after_warmup(self, step: int) -> float:
        remaining = self.last_step - step
        if remaining >= self.num_decay_steps:
            return 1.0
        return self.final_fraction + (1.0 - self.final_fraction) * remaining / self.num_decay_steps
