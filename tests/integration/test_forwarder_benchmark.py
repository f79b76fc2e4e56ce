"""The benchmarks of the forwarder compute what they say: rates, and ratios of periods to their neighbours."""

import json

import pytest

from benchmarks import forwarder, outage
from benchmarks.forwarder import Measurement
from benchmarks.outage import Period, measurements


def test_rates_are_points_over_the_clocks_time_of_the_best_and_the_median_round() -> None:
    rounds = [Measurement(3000, wall_s, our_cpu_s=0.1, server_cpu_s=0.4) for wall_s in (1.0, 0.5, 0.6)]
    report = json.loads(forwarder.Report(3, rounds).as_json())
    assert report["ratios"] == {"points_per_s": 6000, "points_per_cpu_s": 6000}
    assert report["median_ratios"] == {"points_per_s": 5000, "points_per_cpu_s": 6000}
    assert len(forwarder.Report(3, rounds).as_table().splitlines()) == 4


def test_ratios_are_those_of_a_fault_to_the_periods_around_it() -> None:
    halted = [Period(None, 10, 1.0, 2.0), Period(None, 20, 3.0, 6.0), Period(None, 10, 1.0, 2.0)]
    refused = Period("refuse", 10, 1.5, 2.5)
    slow = Period("slow", 5, 0.5, 1.0)
    found = measurements([halted[0], refused, halted[1], slow, halted[2]])
    assert [each.fault for each in found] == ["refuse", "slow"]
    # A step: halted 0.1, 0.15, 0.1 s of CPU and 0.2, 0.3, 0.2 s on the clock.
    assert found[0].ratios == {"cpu": pytest.approx(0.15 / 0.1), "wall": pytest.approx(0.25 / 0.2)}
    assert found[0].median_ratios == {"cpu": pytest.approx(0.15 / 0.125), "wall": pytest.approx(0.25 / 0.25)}
    assert found[1].median_ratios == {"cpu": pytest.approx(0.1 / 0.125), "wall": pytest.approx(0.2 / 0.25)}
    report = outage.Report(rounds=1, requests={"refuse": 3, "slow": 2}, milliseconds={}, measurements=found)
    assert json.loads(report.as_json())["measurements"][0]["ratios"]["cpu"] == pytest.approx(1.5)
    assert "refuse" in report.as_table()
