"""Loss and gradient-norm spikes: an online detector for alarms, and the published score for tables.

Both compare a value with the values right before it. They differ because an alarm must come at once and only upward,
while a score must be comparable with the literature.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ONLINE_WINDOW = 128
ONLINE_MIN_WINDOW = 64
ONLINE_THRESHOLD = 6.0
"""OLMo-core's StabilityMonitor and SkipStep optimizer: 128 values, active from 64 on, 6 sigma, upward only."""

RECENT = 21
"""Values up to a spike, itself included, that are searched for what moved before it."""

ONLINE_SIGMA_FLOOR = 1e-3
"""Least sigma relative to the mean: a rise below 0.6 % of the mean is no spike, however flat the curve was before."""

SCORE_SIGMA_FLOOR = 1e-10
"""Least sigma relative to the mean in the score: only keeps rounding on a constant series from counting."""

_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Spike:
    """A value far above those before it.

    Attributes:
        value: the value itself.
        baseline: mean of the window before it.
        sigma: population standard deviation of that window, after the floor.
    """

    value: float
    baseline: float
    sigma: float

    @property
    def z(self) -> float:
        """Distance from the baseline in sigmas."""
        return (self.value - self.baseline) / self.sigma

    @property
    def size(self) -> float:
        """Distance from the baseline in the metric's unit."""
        return self.value - self.baseline


class SpikeDetector:
    """Flags values above `mean + threshold * sigma` of the last `window` values, one-sided.

    Every value enters the window, flagged or not, so that the baseline follows a lasting change of level.
    Source: OLMo-core, `train/callbacks/stability_monitor.py` and `optim/skip_step_optimizer.py`; ours adds the floor
    under sigma.

    Args:
        window: values to compare with.
        min_window: values needed before anything is flagged.
        threshold: distance in sigmas.
    """

    def __init__(
        self,
        *,
        window: int = ONLINE_WINDOW,
        min_window: int = ONLINE_MIN_WINDOW,
        threshold: float = ONLINE_THRESHOLD,
    ) -> None:
        if not 2 <= min_window <= window:
            raise ValueError(f"min_window={min_window} must lie in 2..{window} (window={window})")
        self.threshold = threshold
        self._min_window = min_window
        self._values: deque[float] = deque(maxlen=window)

    def update(self, value: float) -> Spike | None:
        """Take the next value; return the spike if it is one.

        Raises:
            ValueError: the value is not finite. That is a divergence, not a spike.
        """
        if not math.isfinite(value):
            raise ValueError(f"value={value} is not finite; the caller treats that as a divergence")
        spike = None
        if len(self._values) >= self._min_window:
            # Summed anew each time: a running sum would drift, and depend on where a run was resumed.
            mean = math.fsum(self._values) / len(self._values)
            variance = math.fsum((x - mean) ** 2 for x in self._values) / len(self._values)
            sigma = max(math.sqrt(variance), ONLINE_SIGMA_FLOOR * abs(mean), _TINY)
            if value > mean + self.threshold * sigma:
                spike = Spike(value=value, baseline=mean, sigma=sigma)
        self._values.append(value)
        return spike

    def values(self) -> list[float]:
        """Return the window, oldest first: the detector's whole state."""
        return list(self._values)

    def restore(self, values: Sequence[float]) -> None:
        """Put back what `values` returned."""
        self._values.clear()
        self._values.extend(values)


class Departure(NamedTuple):
    """The first of the newest values of a series that lies far from those before.

    Attributes:
        steps_before: how many values before the newest it is; 0 is the newest itself.
        z: its distance from the mean of the values before, in their standard deviations.
    """

    steps_before: int
    z: float


def first_departure(
    series: Sequence[float],
    *,
    num_newest: int = RECENT,
    min_window: int = ONLINE_MIN_WINDOW,
    threshold: float = ONLINE_THRESHOLD,
) -> Departure | None:
    """Return which of the `num_newest` last values is the first beyond `threshold` standard deviations, on either side.

    Mean and deviation are those of the values before all of them. The deviation has the floor of the online detector.
    None where none is beyond, or where fewer than `min_window` values come before. It says when something moved, and
    nothing about what moved what.
    """
    before, newest = np.array(series[:-num_newest]), series[-num_newest:]
    if len(before) < min_window:
        return None
    mean = float(before.mean())
    sigma = max(float(before.std()), ONLINE_SIGMA_FLOOR * abs(mean), _TINY)
    for index, value in enumerate(newest):
        z = (value - mean) / sigma
        if abs(z) > threshold:
            return Departure(len(newest) - 1 - index, z)
    return None


@dataclass(frozen=True)
class SpikeScore:
    """How spiky a series is.

    Attributes:
        percent: share of the scored values that lie `k` sigmas or more from the mean before them.
        num_spikes: how many those are.
        num_scored: values with at least `min_window` values before them.
        num_partial: those of them with fewer than `window` values before them; the published score has none.
    """

    percent: float
    num_spikes: int
    num_scored: int
    num_partial: int


def spike_score(series: Sequence[float], *, window: int = 1000, k: float = 7.0, min_window: int = 64) -> SpikeScore:
    """Return the share of values at least `k` standard deviations from the mean of the `window` values before them.

    Two-sided. Source: OLMo et al. 2024 (OLMo 2), arXiv:2501.00656, section 3.2 (window 1000, 7 sigma); ours also scores
    the start of a series, from `min_window` values on, and says how many values that concerns.
    """
    num_spikes = len(scored_spikes(series, window=window, k=k, min_window=min_window))
    num_scored = max(0, len(series) - min_window)
    return SpikeScore(
        percent=100.0 * num_spikes / num_scored if num_scored else 0.0,
        num_spikes=num_spikes,
        num_scored=num_scored,
        num_partial=min(num_scored, window - min_window),
    )


def scored_spikes(series: Sequence[float], *, window: int = 1000, k: float = 7.0, min_window: int = 64) -> list[int]:
    """Return the indices of the values that `spike_score` counts."""
    if not 2 <= min_window <= window:
        raise ValueError(f"min_window={min_window} must lie in 2..{window} (window={window})")
    values = np.asarray(series, dtype=np.float64)
    found = []
    for index in range(min_window, len(values)):
        before = values[max(0, index - window) : index]
        mean = before.mean()
        sigma = max(before.std(), SCORE_SIGMA_FLOOR * abs(mean), _TINY)
        # "not below" so that a NaN or an infinity counts.
        if not abs(values[index] - mean) < k * sigma:
            found.append(index)
    return found
