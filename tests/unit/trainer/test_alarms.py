"""Alarms are raised once and cleared once, at the steps the rule says, however the steps come in."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.training import train_config
from trainer.config.alarms import DEFAULT_WARNINGS, MetricRule
from trainer.metrics.alarm_rules import WatchedMetric, watched_metrics
from trainer.telemetry.alarms import ALARMS_FILE, AlarmRecorder
from trainer.telemetry.chunks import StepBlock

LAYERS = (1, 3)


def moe_config(*, num_experts: int = 8, top_k: int = 1, **rules: Any):
    model = train_config().model.model_dump(mode="json")
    model["moe"] |= {"num_experts": num_experts, "top_k": top_k}
    return train_config(model=model, **rules)


def watched(**fields: Any) -> WatchedMetric:
    given = {"name": "busy", "severity": "warn", "metric": "router/max_load", "comparison": "at_least"}
    return WatchedMetric(**(given | {"threshold": 0.5, "rearm": 0.4, "for_steps": 2} | fields))


def block(values_SL: np.ndarray, *, first: int = 1, metric: str = "router/max_load") -> StepBlock:
    steps = np.arange(first, first + len(values_SL))
    return StepBlock(steps, 10 * steps, steps, {}, {metric: values_SL}, np.zeros((len(steps), 2, 0), dtype=np.int64))


def recorded(folder: Path) -> list[dict[str, Any]]:
    path = folder / ALARMS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(folder: Path, rule: WatchedMetric, values_SL: np.ndarray) -> list[tuple[int, int | None, str, int]]:
    recorder = AlarmRecorder(folder, watched=[rule], layers=LAYERS)
    recorder.observe(block(values_SL, metric=rule.metric), len(values_SL))
    return [(event["step"], event["layer"], event["change"], event["first_step"]) for event in recorded(folder)]


def two_layers(*layer_3: float) -> np.ndarray:
    return np.stack([np.full(len(layer_3), 0.3), np.array(layer_3)], axis=1)


def test_alarm_needs_its_steps_in_a_row_and_names_the_layer(tmp_path: Path):
    values = two_layers(0.6, 0.3, 0.6, 0.6, 0.6, 0.3, 0.3, 0.3)
    assert run(tmp_path, watched(), values) == [(4, 3, "raised", 3), (7, 3, "cleared", 6)]


def test_alarm_is_not_cleared_between_the_threshold_and_where_it_is_armed_again(tmp_path: Path):
    values = two_layers(0.6, 0.6, 0.45, 0.45, 0.45, 0.6, 0.6, 0.6, 0.39, 0.45, 0.39, 0.39)
    assert run(tmp_path, watched(), values) == [(2, 3, "raised", 1), (12, 3, "cleared", 11)]


def test_layers_that_take_turns_raise_nothing(tmp_path: Path):
    values = np.array([[0.6, 0.3], [0.3, 0.6]] * 4)
    assert run(tmp_path, watched(), values) == []


@pytest.mark.parametrize(("layers", "expected"), [("max", (2, 3)), ("mean", None), ("min", None), ("worst", (2, 3))])
def test_reductions_over_layers(tmp_path: Path, layers: str, expected: tuple[int, int] | None):
    events = run(tmp_path, watched(layers=layers), two_layers(0.6, 0.6))
    assert [event[:2] for event in events] == ([] if expected is None else [expected])


def test_mean_over_layers_names_no_layer(tmp_path: Path):
    assert run(tmp_path, watched(layers="mean"), two_layers(0.8, 0.8)) == [(2, None, "raised", 1)]


def test_values_at_most_are_watched_the_other_way(tmp_path: Path):
    rule = watched(metric="router/token_entropy", comparison="at_most", threshold=0.1, rearm=0.2, for_steps=1)
    assert run(tmp_path, rule, two_layers(0.1, 0.15, 0.3)) == [(1, 3, "raised", 1), (3, 3, "cleared", 3)]


def test_what_is_no_number_is_on_neither_side(tmp_path: Path):
    assert run(tmp_path, watched(for_steps=1), two_layers(math.nan, math.nan)) == []


def test_only_a_stopping_rule_stops(tmp_path: Path):
    for severity in ("warn", "stop"):
        recorder = AlarmRecorder(None, watched=[watched(severity=severity)], layers=LAYERS)
        recorder.observe(block(two_layers(0.6, 0.6)), 2)
        assert (recorder.stopped_by is not None) == (severity == "stop")
    assert recorder.stopped_by == "busy: router/max_load of layer 3 >= 0.5 since step 1, now 0.6"


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_events_do_not_depend_on_how_steps_are_drained_or_where_a_run_is_resumed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    values = np.array(data.draw(st.lists(st.tuples(st.sampled_from([0.3, 0.45, 0.6]), st.floats(0, 1)), min_size=4)))
    rules = [watched(), watched(severity="stop", layers="mean", for_steps=3)]
    whole, pieces = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("pieces")
    expected = AlarmRecorder(whole, watched=rules, layers=LAYERS)
    expected.observe(block(values), len(values))
    first = AlarmRecorder(pieces, watched=rules, layers=LAYERS)
    checkpoint = data.draw(st.integers(1, len(values) - 1))
    for step in range(checkpoint):
        first.observe(block(values[step : step + 1], first=step + 1), 1)
    state = json.loads(json.dumps(first.state()))
    lost = values[checkpoint : data.draw(st.integers(checkpoint, len(values)))]
    first.observe(block(lost, first=checkpoint + 1), len(lost))
    second = AlarmRecorder(pieces, watched=rules, layers=LAYERS)
    second.restore(state, step=checkpoint)
    second.observe(block(values[checkpoint:], first=checkpoint + 1), len(values) - checkpoint)
    assert recorded(pieces) == recorded(whole)
    assert second.stopped_by == expected.stopped_by
    assert second.state() == expected.state()


def test_named_rules_have_the_numbers_of_the_model():
    rules = {(rule.name, rule.metric): rule for rule in watched_metrics(moe_config(num_experts=16, top_k=2))}
    assert rules["collapse", "router/max_load"].threshold == 0.9 / 2
    assert rules["collapse", "router/effective_experts"].threshold == 0.25 * 16
    assert rules["dead_experts", "router/persistent_dead_fraction"].threshold == pytest.approx(0.5 / 16)
    assert rules["divergence", "train/loss_rise"].threshold == 0.5
    assert rules["entropy_floor", "router/token_entropy"].threshold == pytest.approx(0.01 * math.log(16))
    assert all(rule.severity == "warn" for rule in rules.values())


@pytest.mark.parametrize("num_experts", [8, 20, 64, 100])
def test_dead_experts_are_those_above_the_fraction(num_experts: int):
    (rule,) = (rule for rule in watched_metrics(moe_config(num_experts=num_experts)) if rule.name == "dead_experts")
    for num_dead in range(num_experts):
        assert (num_dead / num_experts >= rule.threshold) == (num_dead > 0.05 * num_experts + 1e-9)


def test_collapse_is_not_watched_where_balance_looks_like_it():
    names = {rule.metric for rule in watched_metrics(moe_config(num_experts=4, top_k=4))}
    assert not names & {"router/max_load", "router/effective_experts"}
    names = {rule.metric for rule in watched_metrics(moe_config(num_experts=8, top_k=2))}
    assert "router/max_load" in names  # 0.45, against 0.125 in balance
    assert "router/effective_experts" not in names  # collapse leaves 2 of 8, which is not below a quarter


def test_dense_model_is_watched_for_divergence_alone():
    dense = train_config(model={**train_config().model.model_dump(mode="json"), "moe": None})
    assert [rule.name for rule in watched_metrics(dense)] == ["divergence"]


def test_router_without_a_distribution_has_no_entropy_floor():
    model = train_config().model.model_dump(mode="json")
    model["moe"] |= {"router": {"kind": "hash"}, "balancing": []}
    assert "entropy_floor" not in {rule.name for rule in watched_metrics(train_config(model=model))}


def test_rules_are_data_of_the_config():
    config = train_config(
        stop_when=[{"kind": "collapse", "for_steps": 3}],
        warn_when=[{"kind": "metric", "metric": "train/loss", "comparison": "at_least", "threshold": 9.0}],
    )
    assert [(rule.name, rule.severity) for rule in watched_metrics(config)][-1] == ("train/loss", "warn")
    assert train_config().warn_when == DEFAULT_WARNINGS
    assert train_config().stop_when == ()
    assert type(config).model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"metric": "throughput/tokens_per_s"}, "not recorded at every step"),
        ({"metric": "router/load"}, "not recorded at every step"),
        ({"metric": "train/loss", "layers": "mean"}, "does not have"),
        ({"metric": "train/loss", "rearm": 2.0}, "wrong side"),
    ],
)
def test_rules_that_make_no_sense_are_refused(fields: dict[str, Any], problem: str):
    with pytest.raises(ValidationError, match=problem):
        MetricRule.model_validate({"comparison": "at_least", "threshold": 1.0} | fields)
