"""Every schedule: a factor in [0, 1] that rises, peaks at 1, never rises again, and ends where its config says."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.component_configs import config_classes, example_config
from trainer.config.schedules import ScheduleConfig
from trainer.schedules import SCHEDULES
from trainer.schedules.build import build_schedule

every_kind = pytest.mark.parametrize("kind", SCHEDULES)
runs = given(
    num_steps=st.integers(1, 400),
    warmup_fraction=st.floats(0.0, 0.75),
    final_fraction=st.floats(0.0, 1.0),
)


def has_final_fraction(kind: str) -> bool:
    """Returns whether the config says where the schedule ends; one that does not says so by its formula."""
    return "final_fraction" in config_classes(ScheduleConfig)[kind].model_fields


def factors(kind: str, num_steps: int, warmup_fraction: float, final_fraction: float) -> tuple[list[float], int]:
    """Returns the factor of every step, and the number of warm-up steps."""
    fields = {"warmup_fraction": warmup_fraction}
    if has_final_fraction(kind):
        fields["final_fraction"] = final_fraction
    config = example_config(ScheduleConfig, kind, **fields)
    schedule = build_schedule(config, num_steps=num_steps)
    return [schedule(step) for step in range(num_steps)], min(round(warmup_fraction * num_steps), num_steps - 1)


def test_registry_has_the_kinds_of_the_config() -> None:
    assert set(SCHEDULES) == set(config_classes(ScheduleConfig))


@every_kind
@runs
def test_factors_are_bounded_and_reach_one(
    kind: str, num_steps: int, warmup_fraction: float, final_fraction: float
) -> None:
    values, num_warmup_steps = factors(kind, num_steps, warmup_fraction, final_fraction)
    assert all(0.0 <= value <= 1.0 for value in values)
    assert values[num_warmup_steps] == 1.0


@every_kind
@runs
def test_warmup_rises_strictly_from_above_zero(
    kind: str, num_steps: int, warmup_fraction: float, final_fraction: float
) -> None:
    values, num_warmup_steps = factors(kind, num_steps, warmup_fraction, final_fraction)
    rising = [0.0, *values[: num_warmup_steps + 1]]
    assert all(earlier < later for earlier, later in itertools.pairwise(rising))


@every_kind
@runs
def test_after_warmup_the_factor_never_rises(
    kind: str, num_steps: int, warmup_fraction: float, final_fraction: float
) -> None:
    values, num_warmup_steps = factors(kind, num_steps, warmup_fraction, final_fraction)
    falling = values[num_warmup_steps:]
    assert all(earlier >= later for earlier, later in itertools.pairwise(falling))


@pytest.mark.parametrize("kind", [kind for kind in SCHEDULES if has_final_fraction(kind)])
@runs
def test_last_step_is_exactly_the_final_fraction(
    kind: str, num_steps: int, warmup_fraction: float, final_fraction: float
) -> None:
    values, num_warmup_steps = factors(kind, num_steps, warmup_fraction, final_fraction)
    # A run with no step after the warm-up's end has its peak there.
    assert values[-1] == (final_fraction if num_steps - num_warmup_steps > 1 else 1.0)
