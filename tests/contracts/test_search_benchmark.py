"""The search benchmark keeps its form, and what it compares has the same past."""

import json

from benchmarks.search import SPEC, Past, run
from orchestrator.search.study import study_of
from orchestrator.spec import ExperimentSpec


def test_json_names_the_past_and_every_ratio() -> None:
    report = json.loads(run(rounds=2, sizes=[3]).as_json())
    (measurement,) = report["measurements"]
    assert (measurement["num_past"], report["rounds"]) == (3, 2)
    assert set(measurement["milliseconds"]) == {"optuna", "ask", "recorded"}
    for kind in ("ratios", "median_ratios"):
        assert set(measurement[kind]) == {"ask_to_optuna", "recorded_to_optuna"}
        assert all(ratio > 0 for ratio in measurement[kind].values())


def test_both_know_the_same_trials() -> None:
    past = Past(ExperimentSpec.model_validate(SPEC), 12)
    ours = study_of(past.spec, number=12, history=past.rows).trials
    theirs = past.study.trials
    assert [(trial.params, trial.values, trial.distributions) for trial in ours] == [
        (trial.params, trial.values, trial.distributions) for trial in theirs
    ]
