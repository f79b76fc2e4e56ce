"""Constant after the warm-up."""

from trainer.schedules.base import Schedule


class ConstantSchedule(Schedule):
    """Warm-up, then 1 to the end: what checkpoints of any length of a run can be compared under."""

    def after_warmup(self, step: int) -> float:
        del step
        return 1.0
