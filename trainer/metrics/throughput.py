"""Throughput: a clock that counts training time only, and tokens per second."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class TrainingClock:
    """Adds up the seconds spent in training steps; evaluation, checkpoints and reports are excluded.

    Args:
        now: monotonic clock in seconds.
    """

    def __init__(self, *, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._before_s = 0.0
        self._started_s: float | None = now()

    def resume_from(self, duration_s: float) -> None:
        """Start anew, with the seconds of training that an earlier process counted."""
        self._before_s, self._started_s = duration_s, self._now()

    @property
    def duration_s(self) -> float:
        """Seconds of training so far; stands still inside `excluded`."""
        return self._before_s + (0.0 if self._started_s is None else self._now() - self._started_s)

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Stop the clock for the time spent inside."""
        self._before_s, self._started_s = self.duration_s, None
        try:
            yield
        finally:
            self._started_s = self._now()


def tokens_per_s(num_tokens: int, duration_s: float) -> float:
    """Return tokens per second; 0.0 if no time has passed."""
    return num_tokens / duration_s if duration_s > 0 else 0.0
