"""Cosine decay."""

import math

from trainer.config.schedules import CosineScheduleConfig
from trainer.schedules.base import Schedule


class CosineSchedule(Schedule):
    """Warm-up, then half a cosine from 1 to exactly `final_fraction` at the last step.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, without restarts.
    """

    def __init__(self, config: CosineScheduleConfig, *, num_steps: int) -> None:
        super().__init__(config, num_steps=num_steps)
        self.final_fraction = config.final_fraction

    def after_warmup(self, step: int) -> float:
        if step == self.num_warmup_steps:
            return 1.0
        progress = (step - self.num_warmup_steps) / (self.last_step - self.num_warmup_steps)
        # cos(pi) is exactly -1, so the last step is exactly final_fraction.
        return self.final_fraction + (1.0 - self.final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))
