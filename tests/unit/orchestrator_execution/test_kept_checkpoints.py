"""Which checkpoints of a trial are kept."""

from typing import Any

import pytest

from orchestrator.execution.checkpoints import kept
from orchestrator.states import TrialState
from orchestrator.store.records import CheckpointRecord, RungRecord, TrialKind, TrialRecord
from tests.support.specs import experiment_spec


def checkpoint(tokens: int, objective: float | None = None) -> CheckpointRecord:
    return CheckpointRecord(
        id=f"chk_{tokens}",
        trial_id="trl_1",
        run_id="run_1",
        step=tokens // 10,
        tokens=tokens,
        folder=f"step-{tokens}",
        manifest_sha256="",
        state="committed",
        at_ms=0,
        objective=objective,
    )


def trial(state: TrialState = TrialState.RUNNING, *, rung_tokens: tuple[int, ...] = ()) -> TrialRecord:
    rungs = tuple(
        RungRecord(
            trial_id="trl_1",
            trial_number=0,
            trial_kind=TrialKind.SEARCH,
            batch=None,
            rung=index,
            run_id="run_1",
            tokens=tokens,
            value=1.0,
            sequence=index,
            decision=None,
            explanation=None,
            at_ms=0,
        )
        for index, tokens in enumerate(rung_tokens)
    )
    fields: dict[str, Any] = dict.fromkeys(TrialRecord.__dataclass_fields__)
    return TrialRecord(**fields | {"id": "trl_1", "state": state, "rungs": rungs})


SHELF = [checkpoint(100, 3.0), checkpoint(200, 1.0), checkpoint(300), checkpoint(400, 2.0), checkpoint(500, 2.5)]


def steps(policy: dict[str, Any], of: TrialRecord | None = None, **spec: Any) -> list[int]:
    ids = kept(experiment_spec(keep_checkpoints=policy, **spec), of or trial(), SHELF)
    return sorted(int(id.removeprefix("chk_")) for id in ids)


@pytest.mark.parametrize(("last", "expected"), [(1, [500]), (3, [300, 400, 500]), (9, [100, 200, 300, 400, 500])])
def test_newest_are_kept(last: int, expected: list[int]) -> None:
    assert steps({"last": last}) == expected


def test_best_is_kept_in_the_direction_of_the_objective() -> None:
    assert steps({"best": True}) == [200, 500]
    assert steps({"best": True}, objective={"direction": "maximize"}) == [100, 500]


def test_first_at_or_after_a_pinned_count_of_tokens_is_kept() -> None:
    assert steps({"pinned_tokens": [100, 250, 9000]}) == [100, 300, 500]


def test_rungs_are_kept_while_the_trial_lives() -> None:
    assert steps({}, trial(rung_tokens=(100, 300))) == [100, 300, 500]
    assert steps({}, trial(TrialState.COMPLETED, rung_tokens=(100, 300))) == [500]


def test_nothing_is_kept_of_nothing() -> None:
    assert kept(experiment_spec(), trial(), []) == frozenset()
