"""How a search would unfold: counts that can be checked by hand, and by playing the rules."""

import random
from typing import Any

import pytest

from orchestrator.capacity import Capacity, NodeCapacity
from orchestrator.estimate import estimate
from orchestrator.preview import (
    MAX_SAMPLES,
    device_fits,
    device_hours,
    phases,
    rung_previews,
    sampled_points,
    trial_range,
)
from orchestrator.search.space import resolve
from orchestrator.search.stop import decide
from orchestrator.store.records import RungDecision, RungRecord
from tests.support.records import rung_record
from tests.support.specs import experiment_spec

PBT = {"kind": "pbt", "min_tokens": 8192, "interval_tokens": 8192}
ASHA = {"kind": "asha", "min_tokens": 1024, "reduction_factor": 4}
TOP_K = {"model.moe.top_k": {"int": [1, 8]}}
"""Of four experts: half of it makes no configuration."""


def node(memory_gib: float, **fields: float) -> NodeCapacity:
    return NodeCapacity(**{"cpus": 4.0, "gpus": 0.0, "memory_gib": memory_gib, **fields})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"sampler": {"kind": "random"}}, [("drawn at random", 8)]),
        (
            {"sampler": {"kind": "tpe", "num_startup_trials": 5}, "enqueue": [{"optimizer.lr": 1e-3}] * 2},
            [("enqueued points", 2), ("drawn at random", 3), ("chosen by TPE's model", 3)],
        ),
        (
            {"sampler": {"kind": "nsga2", "population_size": 3}, "baselines": [{"name": "base"}]},
            [("baselines", 1), ("the first generation of 3, at random", 3), ("2 generations of children", 5)],
        ),
        (
            {"scheduler": PBT, "num_trials": 8},
            [("drawn at random", 8), ("changed copies of the best, in place of the worst", 2)],
        ),
        (
            {"sampler": {"kind": "grid"}, "space": {"model.moe.top_k": {"int": [1, 3]}}, "num_trials": None},
            [("points of the grid, in order", 3)],
        ),
    ],
)
def test_phases_are_those_of_the_sampler(fields: dict[str, Any], expected: list[tuple[str, int]]) -> None:
    assert [(phase.what, phase.num_points) for phase in phases(experiment_spec(**fields))] == expected


def test_asha_lets_through_what_its_rule_does_on_average() -> None:
    spec = experiment_spec(scheduler=ASHA, num_trials=40)
    first = rung_previews(spec)[0]
    counts: list[int] = []
    for seed in range(200):
        source, there, num_passed = random.Random(seed), [], 0
        for number in range(40):
            value = source.random()
            earlier: list[RungRecord] = list(there)
            num_passed += decide(spec, 0, value, earlier, number=number).decision is RungDecision.CONTINUE
            there.append(rung_record(number, value))
        counts.append(num_passed)
    assert (first.rung, first.tokens, first.arriving) == (0, 1024, 40)
    # 200 sweeps: the mean's standard error is about 0.2 trials.
    assert first.passing == pytest.approx(sum(counts) / len(counts), abs=0.7)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"synchronous": True, "batch_size": 8}, [(40, 10), (10, 4)]),
        ({"scheduler": ASHA | {"mode": "promote"}}, [(40, 10), (10, 2)]),
        (
            {"scheduler": {"kind": "patience", "min_tokens": 8192, "interval_tokens": 8192}},
            [(40, None)],
        ),
        (
            {"scheduler": {"kind": "median", "min_tokens": 8192, "interval_tokens": 8192, "min_trials": 4}},
            [(40, 22)],
        ),
        ({"scheduler": PBT | {"min_tokens": 4096, "interval_tokens": 4096}}, [(40, 30), (40, 30), (40, 30)]),
    ],
)
def test_rungs_of_other_rules(fields: dict[str, Any], expected: list[tuple[float, float | None]]) -> None:
    spec = experiment_spec(**{"scheduler": ASHA, "num_trials": 40, **fields})
    assert [(rung.arriving, rung.passing) for rung in rung_previews(spec)][: len(expected)] == expected
    assert rung_previews(experiment_spec()) == ()


def test_sample_has_complete_configurations_and_says_what_cannot_run() -> None:
    spec = experiment_spec(space=TOP_K, enqueue=[{"model.moe.top_k": 7}])
    sample = sampled_points(spec, None)
    assert len(sample) == MAX_SAMPLES
    assert sample[0].params == {"model.moe.top_k": 7}
    assert sample[0].config is None
    assert "top_k" in (sample[0].problem or "")
    runs = next(point for point in sample if point.config is not None)
    assert runs.config == resolve(spec, runs.params)
    assert runs.total_parameters is not None
    large = sampled_points(experiment_spec(), Capacity(nodes=(node(1e-6),)))
    assert all("more than any node has" in (point.problem or "") for point in large)


def test_range_of_trials_and_fit_count_what_was_tried() -> None:
    spec = experiment_spec(space=TOP_K, num_trials=20, baselines=[{"name": "base"}], replicas=2)
    found = trial_range(spec, None)
    assert (found.high, found.unit) == (42, "trials")
    assert 2 < (found.low or 0) < 42  # about half of the points have more experts per token than there are
    assert found.basis.split(";")[0].endswith("points tried can run")
    fits = device_fits(spec, Capacity(nodes=(node(8.0), node(1e-6), node(8.0))))
    assert [(fit.num_nodes, fit.memory_gib) for fit in fits] == [(2, 8.0), (1, 1e-6)]
    assert fits[0].num_fitting == fits[0].num_tried > 0 == fits[1].num_fitting


def test_points_of_trials_on_gpus_fit_by_the_memory_of_the_gpu() -> None:
    spec = experiment_spec(space=TOP_K, resources={"gpus_per_worker": 1})
    nodes = (
        node(8.0),
        node(1e-6, gpus=1.0, gpu_memory_gib=16.0),
        node(8.0, gpus=1.0),
        node(8.0, gpus=1.0, gpu_memory_gib=1e-6),
    )
    fits = device_fits(spec, Capacity(nodes=nodes))
    assert [(fit.gpus, fit.gpu_memory_gib, fit.num_fitting > 0) for fit in fits] == [
        (1, None, True),
        (1, 16.0, True),
        (1, 1e-6, False),
        (0, None, False),
    ]
    small = sampled_points(spec, Capacity(nodes=(nodes[0], nodes[3])))
    assert all("more than any GPU has" in (point.problem or "") for point in small if point.config is not None)


def test_device_hours_are_those_of_all_workers() -> None:
    capacity = Capacity(nodes=(node(64.0, gpus=4.0, cpus=16.0),))
    spec = experiment_spec(resources={"num_workers": 2, "gpus_per_worker": 1})
    found = estimate(spec, capacity=capacity)
    hours = device_hours(spec, found)
    assert hours.unit == "GPU h"
    # Two trials of two GPUs at a time.
    assert hours.value == pytest.approx((found.duration.value or 0) * 4 / 3600)
    assert device_hours(experiment_spec(), estimate(experiment_spec(), capacity=None)).unit == "CPU h"
