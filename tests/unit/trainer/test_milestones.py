"""What happens after which step is a function of the config, and nothing is forgotten or done twice."""

from hypothesis import given
from hypothesis import strategies as st

from tests.support.training import STEP_TOKENS, train_config
from trainer.milestones import Milestones


def steps_where(milestones: Milestones, attribute: str, num_steps: int) -> list[int]:
    return [step for step in range(num_steps + 1) if getattr(milestones.at(step), attribute)]


def test_plain_run_evaluates_at_both_ends_and_saves_at_the_last():
    milestones = Milestones(train_config(num_steps=6))
    assert steps_where(milestones, "evaluate", 6) == [0, 6]
    assert steps_where(milestones, "checkpoint", 6) == [6]
    assert steps_where(milestones, "end", 6) == [6]


@given(st.integers(1, 2000), st.integers(1, 12))
def test_cadence_happens_at_the_first_step_that_has_seen_enough_tokens(every_tokens: int, num_steps: int):
    config = train_config(num_steps=num_steps, loop={"checkpoint_every_tokens": every_tokens})
    wanted = {
        config.steps_for_tokens(tokens) for tokens in range(every_tokens, num_steps * STEP_TOKENS + 1, every_tokens)
    }
    found = steps_where(Milestones(config), "checkpoint", num_steps)
    assert set(found) == wanted | {num_steps}


def test_rung_evaluates_and_saves_and_close_rungs_share_a_step():
    milestones = Milestones(train_config(num_steps=6), rung_tokens=(STEP_TOKENS + 1, 2 * STEP_TOKENS, 4 * STEP_TOKENS))
    assert milestones.at(2).rungs == (0, 1)
    assert milestones.at(4).rungs == (2,)
    assert steps_where(milestones, "evaluate", 6) == [0, 2, 4, 6]
    assert steps_where(milestones, "checkpoint", 6) == [2, 4, 6]


def test_rung_beyond_the_budget_is_at_the_end():
    assert Milestones(train_config(num_steps=3), rung_tokens=(10**9,)).at(3).rungs == (0,)


def test_stop_saves_without_evaluating_and_holds_from_there_on():
    milestones = Milestones(train_config(num_steps=6), stop_at_tokens=3 * STEP_TOKENS)
    assert steps_where(milestones, "stop", 6) == [3, 4, 5]
    assert milestones.at(3).checkpoint
    assert not milestones.at(3).evaluate


def test_stop_at_the_whole_budget_is_the_end_and_no_stop():
    milestone = Milestones(train_config(num_steps=6), stop_at_tokens=6 * STEP_TOKENS).at(6)
    assert milestone.end
    assert not milestone.stop


def test_rung_in_seconds_is_reached_once_at_the_first_step_after_it():
    milestones = Milestones(train_config(num_steps=6), rung_seconds=(1.0, 2.0, 2.5, 9.0))
    assert milestones.at(1, duration_s=0.9).rungs == ()
    found = milestones.at(2, duration_s=2.6)
    assert found.rungs == (0, 1, 2)
    assert found.evaluate
    assert found.checkpoint
    assert milestones.at(2, duration_s=2.7).rungs == (0, 1, 2), "until they are reported"
    for rung in found.rungs:
        milestones.reported(rung)
    assert milestones.at(3, duration_s=8.0).rungs == ()
    assert milestones.at(6, duration_s=99.0).rungs == (), "the end is no rung"


def test_run_that_goes_on_from_a_rung_in_seconds_ends_at_the_next():
    milestones = Milestones(
        train_config(num_steps=6), rung_seconds=(1.0, 2.0, 4.0), first_timed_rung=1, stop_at_timed_rung=2
    )
    assert milestones.at(3, duration_s=1.5).rungs == ()
    assert milestones.at(4, duration_s=2.5).rungs == (1,)
    assert not milestones.at(4, duration_s=2.5).stop
    assert milestones.at(5, duration_s=4.0).stop
    assert not milestones.at(6, duration_s=9.0).stop
