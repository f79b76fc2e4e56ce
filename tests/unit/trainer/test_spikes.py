"""The detector finds planted spikes and nothing else; the score counts them."""

import math

import numpy as np
import pytest

from trainer.metrics.spikes import ONLINE_MIN_WINDOW, Spike, SpikeDetector, spike_score


def falling_loss(num_steps: int, *, seed: int = 0) -> list[float]:
    """A loss curve as in training: a fast then slow fall with noise."""
    steps = np.arange(num_steps)
    noise = np.random.default_rng(seed).normal(0, 0.05, num_steps)
    return (2 + 6 * np.exp(-steps / 100) + noise).tolist()


def detect(series: list[float]) -> dict[int, Spike]:
    detector = SpikeDetector()
    found = {index: detector.update(value) for index, value in enumerate(series)}
    return {index: spike for index, spike in found.items() if spike is not None}


def test_planted_spike_is_found_where_it_is():
    series = falling_loss(500)
    series[333] += 2.0
    spikes = detect(series)
    assert list(spikes) == [333]
    assert spikes[333].value == series[333]
    assert spikes[333].baseline == pytest.approx(np.mean(series[333 - 128 : 333]), rel=1e-12)
    assert spikes[333].sigma == pytest.approx(np.std(series[333 - 128 : 333]), rel=1e-12)
    assert spikes[333].z > 6
    assert spikes[333].size == pytest.approx(series[333] - spikes[333].baseline)


@pytest.mark.parametrize("seed", range(5))
def test_ordinary_training_has_no_spikes(seed: int):
    assert detect(falling_loss(2000, seed=seed)) == {}


def test_drop_is_not_a_spike():
    series = falling_loss(300)
    series[200] -= 1.5
    assert detect(series) == {}


def test_nothing_is_flagged_before_the_window_has_its_minimum():
    series = [1.0] * (ONLINE_MIN_WINDOW - 1) + [100.0]
    assert detect(series) == {}
    assert list(detect([1.0] * ONLINE_MIN_WINDOW + [100.0])) == [ONLINE_MIN_WINDOW]


def test_tiny_rise_on_a_flat_curve_is_below_the_floor():
    flat = [2.0] * 100
    assert detect([*flat, 2.0 * 1.0059]) == {}
    assert list(detect([*flat, 2.0 * 1.0061])) == [100]


def test_baseline_follows_a_lasting_change_of_level():
    noise = np.random.default_rng(0).normal(0, 0.05, 400)
    series = (np.where(np.arange(400) < 200, 2.0, 4.0) + noise).tolist()
    spikes = detect(series)
    assert min(spikes) == 200
    assert max(spikes) < 200 + 20


def test_restored_detector_goes_on_as_if_never_interrupted():
    series = falling_loss(300)
    series[250] += 1.0
    whole, first = SpikeDetector(), SpikeDetector()
    expected = [whole.update(value) for value in series]
    before = [first.update(value) for value in series[:200]]
    second = SpikeDetector()
    second.restore(first.values())
    assert before + [second.update(value) for value in series[200:]] == expected


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_value_that_is_not_finite_is_refused(value: float):
    with pytest.raises(ValueError, match="not finite"):
        SpikeDetector().update(value)


def test_score_counts_planted_spikes_both_ways():
    series = np.random.default_rng(1).normal(0, 1, 3000)
    series[1500] = 30.0
    series[2500] = -30.0
    score = spike_score(series.tolist())
    assert score.num_spikes == 2
    assert score.num_scored == 3000 - 64
    assert score.num_partial == 1000 - 64
    assert score.percent == pytest.approx(100 * 2 / (3000 - 64))


def test_score_of_a_constant_series_is_zero():
    assert spike_score([3.0] * 500).num_spikes == 0


def test_score_of_a_series_too_short_to_score_is_zero_of_none():
    score = spike_score([1.0] * 10)
    assert (score.percent, score.num_scored) == (0.0, 0)


def test_score_counts_values_that_are_not_finite():
    assert spike_score([1.0, 1.1] * 50 + [math.nan]).num_spikes == 1
