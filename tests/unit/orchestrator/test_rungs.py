"""Where rungs are: in tokens, steps, FLOPs or seconds, for trials of different cost."""

import math

import pytest

from orchestrator.admission import admit
from orchestrator.errors import SpecRejected
from orchestrator.search.rungs import num_rungs_before_start, rung_seconds, rung_tokens
from orchestrator.search.space import resolve
from orchestrator.spec import ExperimentSpec
from tests.support.specs import experiment_document, experiment_spec, train_document
from trainer.config import TrainConfig
from trainer.model.size import flops_per_token

LOOP = {"budget_tokens": 51_200, "global_batch_size": 8, "micro_batch_size": 8}
STEP = 512
SPACE = {"model.moe.top_k": {"choice": [1, 4]}, "loop.global_batch_size": {"choice": [8, 16]}}


def spec_of(**scheduler: object) -> ExperimentSpec:
    return experiment_spec(scheduler=scheduler, base=train_document(loop=LOOP), space=SPACE)


def test_steps_are_the_same_for_every_batch_and_tokens_are_not() -> None:
    spec = spec_of(kind="asha", resource="steps", min_resource=5, reduction_factor=3)
    large = resolve(spec, {"model.moe.top_k": 1, "loop.global_batch_size": 16})
    assert rung_tokens(spec) == (5 * STEP, 15 * STEP, 45 * STEP)
    assert rung_tokens(spec, large) == (10 * STEP, 30 * STEP, 90 * STEP)


def test_trials_are_compared_after_equal_flops_of_what_they_activate() -> None:
    spec = spec_of(kind="asha", resource="active_flops", min_resource=5e9, reduction_factor=2)
    thin = resolve(spec, {"model.moe.top_k": 1, "loop.global_batch_size": 8})
    thick = resolve(spec, {"model.moe.top_k": 4, "loop.global_batch_size": 8})
    assert len(rung_tokens(spec, thin)) <= len(rung_tokens(spec, thick))
    for config in (thin, thick):
        each = flops_per_token(config.model, seq_len=config.data.seq_len)
        for rung, tokens in enumerate(rung_tokens(spec, config)):
            assert 0 <= tokens * each - 5e9 * 2**rung < each, "the first token with so many FLOPs"
    assert rung_tokens(spec, thin)[0] > rung_tokens(spec, thick)[0]


def test_tokens_may_be_said_in_both_forms() -> None:
    one = spec_of(kind="median", min_tokens=2048, interval_tokens=4096)
    other = spec_of(kind="median", min_resource=2048, interval_resource=4096.0)
    assert rung_tokens(one) == rung_tokens(other)
    assert rung_tokens(one)[:2] == (2048, 6144)


def test_seconds_are_no_tokens() -> None:
    spec = spec_of(kind="asha", resource="seconds", min_resource=60, reduction_factor=4)
    assert rung_tokens(spec) == ()
    assert rung_seconds(spec)[:3] == (60, 240, 960)
    assert rung_seconds(spec)[-1] < math.inf
    assert rung_seconds(spec_of(kind="asha", min_tokens=1000)) == ()


def test_rungs_at_or_before_the_step_that_a_fork_begins_with_are_behind_it() -> None:
    start = {"kind": "fork", "path": "x", "sha256": "0" * 64, "step": 15}
    config = TrainConfig.model_validate(train_document(loop=LOOP, start=start))
    assert num_rungs_before_start(config, (5 * STEP, 15 * STEP, 45 * STEP)) == 2
    assert num_rungs_before_start(config.model_copy(update={"start": spec_of(kind="none").base.start}), (1,)) == 0


@pytest.mark.parametrize(
    ("fields", "where", "text"),
    [
        ({"scheduler": {"kind": "asha"}}, "/scheduler", "give one of them"),
        (
            {"scheduler": {"kind": "asha", "min_tokens": 1024, "min_resource": 1024}},
            "/scheduler/min_tokens",
            "give one of them",
        ),
        (
            {"scheduler": {"kind": "asha", "min_tokens": 1024, "resource": "steps"}},
            "/scheduler/min_tokens",
            "min_resource",
        ),
        (
            {"scheduler": {"kind": "asha", "min_resource": 32, "resource": "steps"}},
            "/scheduler/min_resource",
            "less than the 32 steps",
        ),
        (
            {"scheduler": {"kind": "asha", "min_resource": 1e3, "resource": "active_flops"}},
            "/scheduler/min_resource",
            "FLOPs of one step",
        ),
        (
            {"scheduler": {"kind": "median", "min_resource": 1, "interval_resource": 1e-9, "resource": "steps"}},
            "/scheduler/interval_resource",
            "rungs",
        ),
        (
            {"scheduler": {"kind": "asha", "min_resource": 9, "resource": "seconds"}, "synchronous": True},
            "/scheduler/resource",
            "not the same twice",
        ),
        (
            {
                "scheduler": {"kind": "asha", "min_resource": 9, "resource": "seconds"},
                "resources": {"num_workers": 2},
                "base": train_document(loop=LOOP | {"micro_batch_size": 4}),
            },
            "/scheduler/resource",
            "agree on the time",
        ),
        (
            {"scheduler": {"kind": "pbt", "min_tokens": 1024, "interval_tokens": 1024, "explore": ["seed"]}},
            "/scheduler/explore/0",
            "not searched",
        ),
        (
            {
                "scheduler": {
                    "kind": "pbt",
                    "min_tokens": 1024,
                    "interval_tokens": 1024,
                    "explore": ["model.moe.top_k"],
                },
                "space": {"model.moe.top_k": {"int": [1, 4]}},
            },
            "/scheduler/explore/0",
            "another shape",
        ),
        (
            {"scheduler": {"kind": "pbt", "min_tokens": 1024, "interval_tokens": 1024}, "synchronous": True},
            "/scheduler/kind",
            "population",
        ),
        (
            {"scheduler": {"kind": "pbt", "min_tokens": 1024, "interval_tokens": 1024}, "replicas": 2},
            "/replicas",
            "set it to 1",
        ),
        ({"space": {"seed": {"int": [0, 9]}}, "replicas": 2}, "/space/seed", "same seeds"),
        ({"baselines": [{"name": "b", "set": {"seed": 3}}], "replicas": 2}, "/baselines/0/set/seed", "leave seed out"),
    ],
)
def test_what_cannot_be_is_refused_at_its_field(fields: dict[str, object], where: str, text: str) -> None:
    with pytest.raises(SpecRejected) as refused:
        admit(experiment_document(**fields), capacity=None)
    problems = {problem.pointer: problem.message for problem in refused.value.problems}
    assert where in problems, problems
    assert text in problems[where]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"scheduler": {"kind": "asha", "min_resource": 9, "resource": "seconds"}}, "not reproducible"),
        ({"scheduler": {"kind": "asha", "min_tokens": 1024, "mode": "promote"}, "synchronous": True}, "plays no part"),
        (
            {"scheduler": {"kind": "pbt", "min_tokens": 1024, "interval_tokens": 1024}, "num_trials": 3},
            "none is ever copied",
        ),
        (
            {
                "scheduler": {"kind": "pbt", "min_tokens": 1024, "interval_tokens": 1024},
                "space": {"model.moe.top_k": {"int": [1, 4]}, "optimizer.lr": {"float": [1e-4, 1e-2]}},
            },
            "keep their parent's model.moe.top_k",
        ),
        (
            {"scheduler": {"kind": "hyperband", "min_tokens": 1024}, "synchronous": True, "batch_size": 3},
            "each bracket",
        ),
    ],
)
def test_what_is_a_poor_idea_is_said(fields: dict[str, object], text: str) -> None:
    warnings = admit(experiment_document(**fields), capacity=None).warnings
    assert any(text in warning for warning in warnings), warnings
