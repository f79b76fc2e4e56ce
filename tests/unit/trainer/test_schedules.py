"""The learning-rate schedules at the points that matter; the laws all of them keep are in the contract suite."""

import math

import pytest

from trainer.config.schedules import (
    ConstantScheduleConfig,
    CosineScheduleConfig,
    InverseSqrtScheduleConfig,
    ScheduleConfig,
    WarmupStableDecayScheduleConfig,
)
from trainer.schedules.build import build_schedule


def factors(config: ScheduleConfig, num_steps: int) -> list[float]:
    schedule = build_schedule(config, num_steps=num_steps)
    return [schedule(step) for step in range(num_steps)]


def test_warmup_rises_in_equal_steps_to_one() -> None:
    values = factors(CosineScheduleConfig(warmup_fraction=0.2), 20)
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert values[5] < 1.0


def test_cosine_is_half_way_down_in_the_middle() -> None:
    values = factors(CosineScheduleConfig(warmup_fraction=0.0, final_fraction=0.2), 101)
    assert values[0] == 1.0
    assert values[50] == pytest.approx(0.6)
    assert values[25] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.sqrt(0.5)))
    assert values[100] == 0.2


def test_wsd_is_constant_and_then_falls_in_equal_steps() -> None:
    config = WarmupStableDecayScheduleConfig(warmup_fraction=0.1, decay_fraction=0.4, final_fraction=0.2)
    values = factors(config, 10)
    assert values[0] == 0.5
    assert values[1:6] == [1.0] * 5
    assert values[6:] == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_wsd_without_decay_stays_at_one() -> None:
    assert factors(WarmupStableDecayScheduleConfig(warmup_fraction=0.0, decay_fraction=0.0), 7) == [1.0] * 7


def test_wsd_decays_over_one_step_at_least() -> None:
    config = WarmupStableDecayScheduleConfig(warmup_fraction=0.0, decay_fraction=0.001, final_fraction=0.3)
    assert factors(config, 5) == [1.0, 1.0, 1.0, 1.0, 0.3]


def test_constant_stays_at_one_after_the_warmup() -> None:
    values = factors(ConstantScheduleConfig(warmup_fraction=0.3), 10)
    assert values == [0.25, 0.5, 0.75] + [1.0] * 7


@pytest.mark.parametrize("num_warmup_steps", [0, 3, 9])
def test_inverse_sqrt_is_the_published_formula_over_its_peak(num_warmup_steps: int) -> None:
    values = factors(InverseSqrtScheduleConfig(warmup_fraction=num_warmup_steps / 40), 40)
    warmup = num_warmup_steps + 1
    published = [min(step**-0.5, step * warmup**-1.5) for step in range(1, 41)]
    assert values == pytest.approx([value / max(published) for value in published])


def test_inverse_sqrt_halves_over_four_times_its_warmup() -> None:
    assert factors(InverseSqrtScheduleConfig(warmup_fraction=9 / 40), 40)[-1] == 0.5


@pytest.mark.parametrize(
    "config",
    [
        CosineScheduleConfig(),
        WarmupStableDecayScheduleConfig(),
        ConstantScheduleConfig(),
        InverseSqrtScheduleConfig(),
    ],
)
def test_run_of_one_step_trains_at_the_full_rate(config: ScheduleConfig) -> None:
    assert factors(config, 1) == [1.0]


@pytest.mark.parametrize("step", [-1, 10])
def test_step_outside_of_the_run_is_refused(step: int) -> None:
    schedule = build_schedule(CosineScheduleConfig(), num_steps=10)
    with pytest.raises(ValueError, match=f"step={step} is outside of the run; expected 0 to 9"):
        schedule(step)


def test_run_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="num_steps=0"):
        build_schedule(CosineScheduleConfig(), num_steps=0)
