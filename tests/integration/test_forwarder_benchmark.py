"""The benchmarks of the forwarder compute what they say: rates, and effects of pairs of turns."""

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from benchmarks import forwarder, outage
from benchmarks.forwarder import Measurement
from benchmarks.goals import EffectGoal
from benchmarks.outage import ARMS, Turn, measurements, schedule
from benchmarks.paired import effect


def test_rates_are_points_over_the_clocks_time_of_the_best_and_the_median_round() -> None:
    rounds = [Measurement(3000, wall_s, our_cpu_s=0.1, server_cpu_s=0.4) for wall_s in (1.0, 0.5, 0.6)]
    report = json.loads(forwarder.Report(3, rounds).as_json())
    assert report["ratios"] == {"points_per_s": 6000, "points_per_cpu_s": 6000}
    assert report["median_ratios"] == {"points_per_s": 5000, "points_per_cpu_s": 6000}
    assert len(forwarder.Report(3, rounds).as_table().splitlines()) == 4


def test_pairs_are_drawn_evenly_and_adjacent_turns_make_one() -> None:
    turns = list(schedule(40))
    pairs = list(zip(turns[::2], turns[1::2], strict=True))
    assert Counter(arm for (arm, _), _ in pairs) == dict.fromkeys(ARMS, 40)
    assert all(first[0] == second[0] and first[1] is not second[1] for first, second in pairs)
    num_failing_first = sum(first[1] for first, _ in pairs)
    assert 70 < num_failing_first < 130, "of 200, in a drawn order"
    assert turns == list(schedule(40))
    assert turns != list(schedule(40, seed=1))


def test_measurement_is_of_the_failing_turn_over_the_halted_one_of_its_pair() -> None:
    turns = []
    for number, (arm, failing) in enumerate(schedule(12)):
        # The machine grows ten times as slow; a pair is of one moment.
        slowness = 1.0 + 9.0 * (number // 2) / 60
        cost = {"slow": 1.3, "error": 0.9}.get(arm, 1.0) if failing else 1.0
        turns.append(Turn(arm, failing, cpu_s=slowness * cost, wall_s=2 * slowness * cost**2))
    found = {each.fault: each.effects for each in measurements(turns)}
    assert found.keys() == set(ARMS)
    assert found["slow"]["cpu"].ratio == pytest.approx(1.3)
    assert found["slow"]["wall"].ratio == pytest.approx(1.69)
    assert found["error"]["cpu"] == pytest.approx((0.9, 0.9, 0.9, 12))
    assert found["control"]["wall"].ratio == pytest.approx(1.0)
    report = outage.Report(12, {"refuse": 3, "slow": 2}, {}, list(measurements(turns)))
    by_fault = {each["fault"]: each for each in json.loads(report.as_json())["measurements"]}
    assert by_fault["slow"]["cpu"] == {"ratio": 1.3, "low": 1.3, "high": 1.3, "num_pairs": 12}
    assert "control" in report.as_table()


def test_interval_is_that_of_the_signed_rank_test() -> None:
    """Of 6 pairs its ends are the outermost means of two (their own logarithms, that is), of 20 the 53rd from each end:
    the critical value 52 of the published tables."""
    ratios = [1.01, 1.02, 1.04, 1.05, 1.08, 1.5]
    found = effect(ratios)
    assert (found.low, found.high, found.num_pairs) == (pytest.approx(1.01), pytest.approx(1.5), 6)
    assert 1.02 < found.ratio < 1.08, "one pair beside which something else ran moves it little"
    with pytest.raises(ValueError, match="5 pairs"):
        effect(ratios[:5])
    logs = np.random.default_rng(0).normal(size=20)
    means = np.sort([(a + b) / 2 for number, a in enumerate(logs) for b in logs[number:]])
    found = effect(np.exp(logs).tolist())
    assert (found.low, found.high) == (pytest.approx(math.exp(means[52])), pytest.approx(math.exp(means[-53])))


def test_intervals_hold_the_effect_as_often_as_they_say_beside_bursts_of_other_work() -> None:
    draw = np.random.default_rng(1)

    def seconds() -> np.ndarray:
        return draw.lognormal(0, 0.05, 30) * (1 + (draw.random(30) < 0.15) * draw.random(30))

    found = [effect((1.02 * seconds() / seconds()).tolist()) for _ in range(400)]
    share = sum(each.low <= 1.02 <= each.high for each in found) / len(found)
    assert 0.92 < share < 0.98
    assert np.mean([each.ratio for each in found]) == pytest.approx(1.02, abs=0.003)


@pytest.mark.parametrize(
    ("low", "high", "of_nothing", "verdict"),
    [
        (0.99, 1.019, 0.5, "yes"),
        (1.001, 1.03, 0.5, "not shown"),
        (1.021, 1.03, 0.5, "no"),
        (0.99, 1.01, 1.01, "not shown: the control is off"),
    ],
)
def test_goal_is_met_where_the_whole_interval_of_the_worst_fault_is_within(
    low: float, high: float, of_nothing: float, verdict: str
) -> None:
    def measured(fault: str, low: float, high: float) -> dict[str, Any]:
        return {"fault": fault, "wall": {"ratio": (low + high) / 2, "low": low, "high": high, "num_pairs": 50}}

    faults = [measured("refuse", 0.9, 0.95), measured("black_hole", low, high), measured("control", of_nothing, 2.0)]
    row = EffectGoal("step", 1.02, "wall").row({"outage": {"report": {"measurements": faults}}})
    assert f"({low:.3f} to {high:.3f}) of 50 pairs, black hole | " in row
    assert row.endswith(f"({of_nothing:.3f} to 2.000) | {verdict} |")
