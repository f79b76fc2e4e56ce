"""Decay with the inverse square root of the step."""

import math

from trainer.schedules.base import Schedule


class InverseSqrtSchedule(Schedule):
    """Warm-up of W steps, then sqrt((W + 1) / (step + 1)): 1 at the warm-up's end, and no end of its own.

    Vaswani et al. 2017, arXiv:1706.03762, eq. 3, is min(s**-0.5, s * w**-1.5) with s counted from 1; divided by its
    peak at s = w it is min(sqrt(w / s), s / w), which this is with w = W + 1.
    """

    def after_warmup(self, step: int) -> float:
        return math.sqrt((self.num_warmup_steps + 1) / (step + 1))
