"""The benchmark of planted spikes counts what it says, and the table in the docs is that of the kept results."""

import itertools

import numpy as np
import pytest

from benchmarks.goals import kept_results
from benchmarks.machine import CHECKOUT
from benchmarks.spike_detection import NUM_PLANTED, SIZES, measurements, online, plant, scored, table
from trainer.metrics.spikes import ONLINE_WINDOW, spike_score


def noise(number: int = 1000) -> np.ndarray:
    return 6.0 + 0.1 * np.random.default_rng(0).normal(size=number)


@pytest.mark.parametrize(("metric", "size", "change"), [("train/loss", 2.0, 2.0), ("optimizer/grad_norm", 3.0, None)])
def test_planted_spikes_are_apart_and_the_rest_is_untouched(metric: str, size: float, change: float | None) -> None:
    series = noise()
    planted, places = plant(series, size, metric=metric, draw=np.random.default_rng(1))
    assert len(places) == NUM_PLANTED
    assert min(places) >= ONLINE_WINDOW
    ordered = sorted(places)
    assert all(after - before > ONLINE_WINDOW for before, after in itertools.pairwise(ordered))
    for index, (value, before) in enumerate(zip(planted, series, strict=True)):
        expected = (before + change if change is not None else before * size) if index in places else before
        assert value == expected


def test_all_large_spikes_in_noise_are_found_and_nothing_else_is() -> None:
    found = measurements({"train/loss": [noise()]}, num_draws=2)
    for method in ("online", "score"):
        by_size = {each.size: each for each in found if each.method == method}
        assert (by_size[4.0].recall, by_size[4.0].precision, by_size[4.0].clean) == (1.0, 1.0, 0.0)
        assert list(by_size) == list(SIZES["train/loss"])


def test_an_outlier_that_nobody_planted_is_an_error() -> None:
    series = noise()
    series[500] += 3.0
    assert online(series.tolist()) == scored(series.tolist()) == {500}
    assert spike_score(series.tolist()).num_spikes == 1
    found = {(each.method, each.size): each for each in measurements({"train/loss": [series]}, num_draws=3)}
    assert found["online", 4.0].clean == 1.0
    precision = found["online", 4.0].precision
    assert precision is not None
    # Ours may hide it, where one is planted shortly before.
    assert NUM_PLANTED / (NUM_PLANTED + 1) - 0.01 <= precision < 1.0


def test_the_table_of_the_docs_is_that_of_the_kept_results() -> None:
    report = kept_results()["spike_detection"]["report"]
    assert table(report) in (CHECKOUT / "docs" / "alarms-and-spikes.md").read_text()
