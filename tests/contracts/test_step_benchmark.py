"""The benchmark of whole steps measures what it says, and the tables in the docs are those of the kept results."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.goals import GOALS, Goal, effects_table, kept_results, table
from benchmarks.machine import CHECKOUT
from benchmarks.step import (
    LOG_EVERY_STEPS,
    TURNS,
    Report,
    Size,
    make_steps,
    measurement,
    process_seconds,
    step_seconds,
    without_statistics,
)
from kernels import route

SIZE = Size(num_experts=4, top_k=2, hidden_dim=16, dim=32, num_layers=2, num_heads=2, sequences=2, seq_len=16)


def test_ratios_are_those_of_the_least_times_over_the_cycle() -> None:
    milliseconds = dict.fromkeys(TURNS, 20.0) | {"dense": 16.0, "transformers": 25.0, "silent": 19.0}
    seconds = {
        name: [[taken / 1e3 * factor for factor in (3, 1, 2)] for _ in range(LOG_EVERY_STEPS)]
        for name, taken in milliseconds.items()
    }
    seconds["moe"][-1] = [0.2, 0.03, 0.3]  # the step that copies the telemetry
    found = measurement(SIZE, seconds)
    assert found.milliseconds["moe"] == pytest.approx((9 * 20 + 30) / 10)
    assert found.tokens_per_s["moe"] == pytest.approx(SIZE.tokens / 0.021, rel=1e-3)
    assert found.ratios["moe_to_dense"] == pytest.approx(21 / 16, abs=1e-4)
    assert found.ratios["transformers_to_moe"] == pytest.approx(25 / 21, abs=1e-4)
    assert found.ratios["telemetry_overhead"] == pytest.approx(21 / 19 - 1, abs=1e-4)
    assert found.median_ratios["moe_to_dense"] == pytest.approx((9 * 40 + 200) / 10 / 32, abs=1e-4)
    report = Report(device="cpu", threads=1, dtype="float32", torch="2", rounds=3, measurements=[found])
    (each,) = json.loads(report.as_json())["measurements"]
    assert each["size"] == SIZE._asdict()
    assert "moe_to_dense" in report.as_table()


def test_recorded_steps_are_recorded_and_silent_ones_are_not(tmp_path: Path) -> None:
    steps = make_steps("moe", SIZE, tmp_path / "moe")
    taken = step_seconds({name: lambda step=step: process_seconds(step) for name, step in steps.items()}, rounds=1)
    assert {name: [len(place) for place in places] for name, places in taken.items()} == {
        "recorded": [1] * LOG_EVERY_STEPS,
        "silent": [1] * LOG_EVERY_STEPS,
    }
    progress = json.loads((tmp_path / "moe" / "progress.json").read_text())
    # Two cycles were recorded, but the run's file is rewritten once a second only.
    assert progress["step"] in (LOG_EVERY_STEPS, 2 * LOG_EVERY_STEPS)
    assert progress["max_violation"] is not None


def test_a_step_without_statistics_still_counts_pairs() -> None:
    logits_TE = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    expected = route(logits_TE, top_k=2, normalize=False)
    with without_statistics():
        silent = route(logits_TE, top_k=2, normalize=False)
    assert torch.equal(silent.stats.counts_E, expected.stats.counts_E)
    assert torch.equal(silent.weights_N, expected.weights_N)
    assert silent.stats.stats_S.numel() == 0
    assert route(logits_TE, top_k=2, normalize=False).stats.stats_S.numel() > 0


def test_the_peer_computes_our_loss_and_trains(tmp_path: Path) -> None:
    steps = make_steps("transformers", SIZE, tmp_path / "transformers")  # compares the losses
    for step in steps.values():
        assert process_seconds(step) > 0


def test_dense_twin_trains(tmp_path: Path) -> None:
    assert process_seconds(make_steps("dense", SIZE, tmp_path / "dense")["recorded"]) > 0


@pytest.mark.parametrize(
    ("at_least", "least", "medians", "cells"),
    [
        (False, [1.2, 1.4], [1.2], "1.4 | 1.2 | no"),
        (False, [1.2, 1.3], [1.25], "1.3 | 1.25 | yes"),
        (False, [1.2], [1.25, 1.31], "1.2 | 1.31 | by least times only"),
        (True, [1.4, 1.2], [1.5], "1.2 | 1.5 | no"),
        (True, [1.4], [], "1.4 |  | yes"),
    ],
)
def test_a_goal_is_met_by_the_worst_value_of_both_kinds(
    at_least: bool, least: list[float], medians: list[float], cells: str
) -> None:
    goal = Goal("ratio", 1.3, lambda _, kind: least if kind == "ratios" else medians, at_least=at_least)
    assert goal.row({}).endswith(f" 1.3 | {cells} |")


def test_the_tables_of_the_docs_are_those_of_the_kept_results() -> None:
    results = kept_results()
    page = (CHECKOUT / "docs" / "benchmarks.md").read_text()
    assert table(results) in page
    assert effects_table(results) in page
    assert len(table(results).splitlines()) == 2 + len(GOALS)
    for result in results.values():
        for measured in result.get("parts", {"whole": result}).values():
            assert {"cpu", "num_cores", "versions", "date", "commit"} <= measured["machine"].keys()
