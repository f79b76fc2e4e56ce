"""What a schedule has to be, and the warm-up all of them share. Torch-free."""

from abc import ABC, abstractmethod
from typing import Protocol


class WarmupConfig(Protocol):
    """What every schedule's config has."""

    @property
    def warmup_fraction(self) -> float: ...


class Schedule(ABC):
    """A factor in [0, 1] on the learning rate for each 0-based step of a run of `num_steps`.

    The first `num_warmup_steps` steps rise linearly and never start at 0, which would waste a step: step s has
    (s + 1) / (num_warmup_steps + 1). The step after them has factor 1, also in a run too short for anything else.
    """

    def __init__(self, config: WarmupConfig, *, num_steps: int) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} is not allowed; a schedule needs at least 1")
        self.last_step = num_steps - 1
        self.num_warmup_steps = min(round(config.warmup_fraction * num_steps), self.last_step)

    def __call__(self, step: int) -> float:
        """Returns the factor of `step`.

        Raises:
            ValueError: `step` is outside of the run.
        """
        if not 0 <= step <= self.last_step:
            raise ValueError(f"step={step} is outside of the run; expected 0 to {self.last_step}")
        if step < self.num_warmup_steps:
            return (step + 1) / (self.num_warmup_steps + 1)
        return self.after_warmup(step)

    @abstractmethod
    def after_warmup(self, step: int) -> float:
        """Returns the factor of a step in [num_warmup_steps, last_step]; 1 at `num_warmup_steps`."""
