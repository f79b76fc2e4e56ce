"""The learning-rate schedules at the points that matter; the laws all of them keep are in the contract suite."""

import math

import pytest

from trainer.config.schedules import CosineScheduleConfig, WarmupStableDecayScheduleConfig
from trainer.schedules.build import build_schedule


def factors(config: CosineScheduleConfig | WarmupStableDecayScheduleConfig, num_steps: int) -> list[float]:
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


@pytest.mark.parametrize("config", [CosineScheduleConfig(), WarmupStableDecayScheduleConfig()])
def test_run_of_one_step_trains_at_the_full_rate(
    config: CosineScheduleConfig | WarmupStableDecayScheduleConfig,
) -> None:
    assert factors(config, 1) == [1.0]


@pytest.mark.parametrize("step", [-1, 10])
def test_step_outside_of_the_run_is_refused(step: int) -> None:
    schedule = build_schedule(CosineScheduleConfig(), num_steps=10)
    with pytest.raises(ValueError, match=f"step={step} is outside of the run; expected 0 to 9"):
        schedule(step)


def test_run_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="num_steps=0"):
        build_schedule(CosineScheduleConfig(), num_steps=0)
