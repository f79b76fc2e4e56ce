"""Builds the learning-rate schedule of a run."""

from collections.abc import Callable

from trainer.config.schedules import ScheduleConfig
from trainer.schedules import SCHEDULES


def build_schedule(config: ScheduleConfig, *, num_steps: int) -> Callable[[int], float]:
    """Returns the factor on the learning rate as a function of the 0-based step."""
    return SCHEDULES[config.kind](config, num_steps=num_steps)
