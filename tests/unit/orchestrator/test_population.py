"""Population-based training: who is replaced by a copy of whom, and what a copy changes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.preview import trial_range
from orchestrator.search.draw import holds
from orchestrator.search.population import copy_of, explored, generation, num_copies
from orchestrator.search.rank import compare
from orchestrator.search.space import parameters
from orchestrator.spec import ExperimentSpec
from orchestrator.states import TrialState
from orchestrator.store.records import CheckpointRecord, RungDecision, TrialRecord
from tests.support.records import rung_record, trial_record
from tests.support.specs import experiment_spec, train_document
from trainer.config import TrainConfig
from trainer.config.fork import fork_problems
from trainer.config.start import ForkStartConfig

PBT = {"kind": "pbt", "min_tokens": 2048, "interval_tokens": 2048}
SPACE = {
    "optimizer.lr": {"float": [1e-4, 1e-2], "log": True},
    "optimizer.weight_decay": {"float": [0.0, 0.3], "step": 0.1},
    "loop.log_every_steps": {"int": [1, 9]},
    "model.moe.balancing.0.coefficient": {"choice": [0.0, 0.01, 0.1]},
    "model.moe.top_k": {"int": [1, 4]},
    "schedule": {"options": {"cosine": {"kind": "cosine"}, "constant": {"kind": "constant"}}},
}
POINT = {
    "optimizer.lr": 0.001,
    "optimizer.weight_decay": 0.1,
    "loop.log_every_steps": 5,
    "model.moe.balancing.0.coefficient": 0.01,
    "model.moe.top_k": 2,
    "schedule": "cosine",
}


def spec_of(**fields: object) -> ExperimentSpec:
    return experiment_spec(scheduler=PBT | fields.pop("scheduler", {}), space=SPACE, num_trials=8, **fields)  # type: ignore[operator]


SPEC = spec_of()


def member(number: int, value: float | None, *, rung: int = 0, waits: bool = True, **fields: object) -> TrialRecord:
    decided = [rung_record(number, value, rung=earlier) for earlier in range(rung)]
    here = [rung_record(number, value, rung=rung, decision=None)] if waits else []
    trial = trial_record(SPEC, number, POINT, state=TrialState.RUNNING)
    return replace(trial, rungs=(*decided, *here), **fields)  # type: ignore[arg-type]


def test_worst_quarter_ends_and_copies_of_the_best_quarter_go_on() -> None:
    verdicts, copies = generation(SPEC, [member(number, float(number)) for number in range(8)])
    decisions = {verdict.trial_id: verdict.decision for verdict in verdicts}
    stopped = sorted(key for key, one in decisions.items() if one.decision is RungDecision.STOP)
    assert stopped == ["trl_6", "trl_7"]
    assert [copy.ended.number for copy in copies] == [6, 7]
    assert {copy.parent.number for copy in copies} <= {0, 1}
    parent = copies[0].parent.number
    assert decisions["trl_6"].explanation == (
        f"rank 7 of 8 at rung 0 with 6.0000; a changed copy of trial {parent} goes on in its place"
    )


def test_number_of_copies_is_known_before() -> None:
    # Budget 16,384 tokens, rungs every 2048: seven of them, two copies at each.
    assert num_copies(SPEC) == 14
    assert trial_range(SPEC, None).high == 8 + 14


@given(st.permutations(range(8)))
def test_generation_is_a_function_of_the_rows_in_any_order(order: list[int]) -> None:
    rows = [member(number, float(number % 3)) for number in range(8)]
    expected = generation(SPEC, rows)
    found = generation(SPEC, [rows[index] for index in order])
    assert sorted(found.verdicts) == sorted(expected.verdicts)
    assert [(copy.ended.id, copy.parent.id) for copy in found.copies] == [
        (copy.ended.id, copy.parent.id) for copy in expected.copies
    ]


def test_nothing_is_decided_while_one_that_lives_is_missing() -> None:
    rows = [member(number, float(number)) for number in range(7)]
    assert generation(SPEC, rows) == ([], []), "the eighth is still to be proposed"
    assert generation(SPEC, [*rows, member(7, 1.0, waits=False)]) == ([], [])
    failed = replace(member(7, 1.0, waits=False), state=TrialState.FAILED, finished_at_ms=1)
    assert len(generation(SPEC, [*rows, failed]).verdicts) == 7


def test_member_without_a_finite_value_is_replaced_whatever_the_share() -> None:
    rows = [member(number, None if number < 4 else float(number)) for number in range(8)]
    copies = generation(SPEC, rows).copies
    assert [copy.ended.number for copy in copies] == [0, 1, 2, 3]
    assert {copy.parent.number for copy in copies} <= {4, 5}
    verdicts, none = generation(SPEC, [member(number, None) for number in range(8)])
    assert none == []
    assert {verdict.decision.decision for verdict in verdicts} == {RungDecision.STOP}


def test_copies_count_in_the_next_generation() -> None:
    rows = [member(number, float(number), rung=1) for number in range(6)]
    rows += [replace(member(number, 9.0), finished_at_ms=1, state=TrialState.PRUNED) for number in (6, 7)]
    rows += [replace(member(number, -1.0, rung=1), parent_trial_id="trl_0") for number in (8, 9)]
    verdicts, copies = generation(SPEC, rows)
    assert len(verdicts) == 8
    assert [copy.ended.number for copy in copies] == [4, 5]
    assert {copy.parent.number for copy in copies} <= {8, 9}


@given(st.integers(0, 10_000))
def test_copy_stays_in_the_space_and_keeps_what_a_checkpoint_is_bound_to(number: int) -> None:
    point = explored(SPEC, POINT, number=number)
    assert point["model.moe.top_k"] == POINT["model.moe.top_k"]
    assert all(holds(parameter.domain, point[parameter.name]) for parameter in parameters(SPEC))
    assert point == explored(SPEC, POINT, number=number)


def test_without_resampling_numbers_move_by_a_factor_and_choices_to_a_neighbour() -> None:
    spec = spec_of(scheduler={"resample_probability": 0.0, "factors": [0.5, 2.0]})
    points = [explored(spec, POINT, number=number) for number in range(40)]
    assert {round(float(point["optimizer.lr"]), 6) for point in points} == {0.0005, 0.002}  # type: ignore[arg-type]
    assert {point["model.moe.balancing.0.coefficient"] for point in points} == {0.0, 0.1}
    assert {point["loop.log_every_steps"] for point in points} <= {2, 3, 9}
    assert {point["schedule"] for point in points} == {"cosine"}


def test_only_what_is_to_be_explored_changes() -> None:
    spec = spec_of(scheduler={"explore": ["optimizer.lr"]})
    for number in range(20):
        point = explored(spec, POINT, number=number)
        assert {name: value for name, value in point.items() if name != "optimizer.lr"} == {
            name: value for name, value in POINT.items() if name != "optimizer.lr"
        }


@pytest.mark.parametrize("number", range(4))
def test_copy_may_go_on_from_its_parent_s_checkpoint(number: int) -> None:
    parent = member(3, 1.0)
    checkpoint = CheckpointRecord(
        id="chk_1",
        trial_id=parent.id,
        run_id="run_3",
        step=4,
        tokens=2048,
        folder="experiments/exp_0/trials/00003/run_3/checkpoints/step-00000004",
        manifest_sha256="a" * 64,
        state="committed",
        at_ms=0,
    )
    proposal = copy_of(SPEC, parent, checkpoint, number=8 + number)
    assert proposal.config is not None
    assert proposal.parent == checkpoint
    assert proposal.config.start == ForkStartConfig(path=checkpoint.folder, sha256="a" * 64, step=4)
    before = TrainConfig.model_validate(parent.config)
    assert fork_problems(before, proposal.config, step=4) == []
    assert proposal.config.optimizer.lr == proposal.params["optimizer.lr"]


def test_base_of_the_tests_is_what_they_say() -> None:
    assert train_document()["model"]["moe"]["balancing"][0]["coefficient"] == 0.01


def test_comparison_says_that_a_copy_s_result_is_not_its_configuration_s_alone() -> None:
    parent = trial_record(SPEC, 0, POINT, objective=2.0)
    copy = trial_record(SPEC, 1, POINT, objective=1.0, parent_trial_id=parent.id)
    assert any(
        "trial 1 is that of the values of their parents" in caveat for caveat in compare(SPEC, [parent, copy]).caveats
    )
    assert not any("parents" in caveat for caveat in compare(SPEC, [parent]).caveats)
