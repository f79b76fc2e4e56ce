"""How long an experiment still takes, from the pace of its trials."""

import pytest

from api.answers import remaining_s
from orchestrator.store.overview import Pace


def live(eta_s: float | None, *, tokens: int = 500) -> dict[str, float | int | None]:
    return {"eta_s": eta_s, "tokens": tokens, "budget_tokens": 1000}


def test_nothing_is_said_before_anything_is_known() -> None:
    assert remaining_s(Pace(live=(None,), num_waiting=3, mean_duration_s=None), num_trials=4, num_proposed=4) is None


def test_the_last_trial_needs_what_it_says() -> None:
    pace = Pace(live=(live(7.0),), num_waiting=0, mean_duration_s=30.0)
    assert remaining_s(pace, num_trials=4, num_proposed=4) == 7.0


def test_trials_to_come_take_the_mean_and_share_the_places() -> None:
    pace = Pace(live=(live(10.0), live(20.0)), num_waiting=1, mean_duration_s=30.0)
    # 10 + 20 s of live runs, one waiting and two not yet proposed at 30 s each, two at a time.
    assert remaining_s(pace, num_trials=8, num_proposed=6) == pytest.approx((30 + 3 * 30) / 2)


def test_the_slowest_live_run_is_a_lower_bound() -> None:
    pace = Pace(live=(live(100.0), live(1.0), live(1.0)), num_waiting=0, mean_duration_s=10.0)
    assert remaining_s(pace, num_trials=3, num_proposed=3) == 100.0


def test_before_the_first_end_a_live_run_tells_the_pace_of_the_others() -> None:
    pace = Pace(live=(live(10.0, tokens=750),), num_waiting=1, mean_duration_s=None)
    # A quarter is left and takes 10 s, so that a whole trial takes 40 s.
    assert remaining_s(pace, num_trials=2, num_proposed=2) == pytest.approx(50.0)
