"""What is summed up over steps equals what is counted anew from all of them, in blocks of any size."""

import json

import numpy as np
import pytest

from trainer.metrics.history import LOSS_DECAY, PERSISTENT_STEPS, RunHistory


def counts(num_steps: int) -> np.ndarray:
    """Loads of 2 layers of 4 experts, rare enough that some experts rest for long."""
    return np.random.default_rng(0).poisson(0.02, (num_steps, 2, 4))


def test_experts_are_dead_after_a_window_without_a_token():
    loads = counts(400)
    found = RunHistory(num_layers=2, num_experts=4).loads(loads)["router/persistent_dead_fraction"]
    for step in range(400):
        window = loads[step + 1 - PERSISTENT_STEPS : step + 1] if step + 1 >= PERSISTENT_STEPS else None
        expected = np.zeros(2) if window is None else (window.sum(axis=0) == 0).mean(axis=-1)
        np.testing.assert_array_equal(found[step], expected)
    assert 0 < found.max() < 1


def test_tokens_seen_are_running_sums_of_the_loads():
    loads = counts(50)
    found = RunHistory(num_layers=2, num_experts=4).loads(loads)
    np.testing.assert_array_equal(found["router/tokens_seen"], loads.cumsum(axis=0).mean(axis=-1))
    np.testing.assert_array_equal(found["router/least_tokens_seen"], loads.cumsum(axis=0).min(axis=-1))


def test_loss_rise_is_zero_while_the_loss_falls_and_the_height_of_a_lasting_step():
    history = RunHistory(num_layers=0, num_experts=0)
    assert not history.rises(np.linspace(5, 3, 100)).any()
    low = history.rises(np.full(1000, 3.0))
    assert not low.any()
    assert history.rises(np.full(1000, 4.0))[-1] == pytest.approx(1.0, abs=1e-6)


def test_loss_rise_of_a_single_spike_is_a_fraction_of_it():
    history = RunHistory(num_layers=0, num_experts=0)
    history.rises(np.full(500, 3.0))
    assert history.rises(np.array([8.0]))[0] == pytest.approx(5.0 * (1 - LOSS_DECAY))


@pytest.mark.parametrize("border", [1, 99, 100, 150])
def test_resumed_history_goes_on_exactly(border: int):
    loads, losses = counts(200), np.random.default_rng(1).normal(3, 0.1, 200)
    whole = RunHistory(num_layers=2, num_experts=4)
    expected, expected_rises = whole.loads(loads), whole.rises(losses)
    first, second = (RunHistory(num_layers=2, num_experts=4) for _ in range(2))
    first.loads(loads[:border]), first.rises(losses[:border])
    second.restore(json.loads(json.dumps(first.state())))
    for name, values in second.loads(loads[border:]).items():
        np.testing.assert_array_equal(values, expected[name][border:])
    np.testing.assert_array_equal(second.rises(losses[border:]), expected_rises[border:])
