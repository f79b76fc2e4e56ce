"""The table of legal moves."""

import pytest

from orchestrator.errors import IllegalTransition
from orchestrator.states import (
    TRANSITIONS,
    ExperimentState,
    RunState,
    TrialState,
    check_transition,
    is_terminal,
    successors,
)


@pytest.mark.parametrize("kind", [ExperimentState, TrialState, RunState])
def test_every_state_of_a_kind_has_a_line_in_its_table(kind: type) -> None:
    assert set(TRANSITIONS[kind]) == set(kind)


def test_states_of_different_kinds_with_one_word_keep_their_own_moves() -> None:
    assert TrialState.RETRYING in successors(TrialState.RUNNING)
    assert RunState.LOST in successors(RunState.RUNNING)
    assert ExperimentState.PAUSING in successors(ExperimentState.RUNNING)


@pytest.mark.parametrize("kind", [ExperimentState, TrialState, RunState])
def test_every_state_that_is_not_final_leads_to_a_final_one(kind: type) -> None:
    for state in TRANSITIONS[kind]:
        seen, pending = {state}, [state]
        while pending:
            pending += [following for following in successors(pending.pop()) if following not in seen]
            seen.update(pending)
        assert any(is_terminal(found) for found in seen)


def test_illegal_move_names_what_may_come_instead() -> None:
    with pytest.raises(IllegalTransition, match="paused to completed; after paused may come: cancelled, cancelling, q"):
        check_transition(ExperimentState.PAUSED, ExperimentState.COMPLETED)


def test_move_to_the_same_word_of_another_kind_is_illegal() -> None:
    with pytest.raises(IllegalTransition):
        check_transition(TrialState.QUEUED, RunState.RUNNING)
