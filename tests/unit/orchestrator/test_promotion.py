"""Promotion of paused trials: played with plain rows, in any order of arrivals, failures and free places."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.search.points import is_paused
from orchestrator.search.promote import never_promoted, promoted
from orchestrator.search.stop import bracket_of
from orchestrator.search.waiting import Verdict, next_wait, on_arrival
from orchestrator.spec import ExperimentSpec
from orchestrator.states import TrialState
from orchestrator.store.records import RungDecision, TrialKind, TrialRecord
from tests.support.records import rung_record, trial_record
from tests.support.specs import experiment_spec, train_document
from trainer.config import TrainConfig

LOOP = {"budget_tokens": 27_000, "global_batch_size": 8, "micro_batch_size": 8}
PROMOTING = {"kind": "asha", "min_tokens": 1000, "reduction_factor": 3, "mode": "promote"}
BRACKETS = PROMOTING | {"kind": "hyperband", "reduction_factor": 2, "num_brackets": 2}
NUM_RUNGS = 3


def spec_of(scheduler: dict[str, object], **fields: object) -> ExperimentSpec:
    return experiment_spec(scheduler=scheduler, base=train_document(loop=LOOP), **fields)


SPECS = {
    "asha": spec_of(PROMOTING),
    "hyperband": spec_of(BRACKETS),
    "maximize": spec_of(PROMOTING, objective={"direction": "maximize"}),
}


class Played:
    """A search over plain rows: trials start, arrive at rungs, fail or complete as `choices` say.

    Values are a function of the trial's number alone, so that who is best is known.
    """

    def __init__(self, spec: ExperimentSpec, choices: list[int], *, num_trials: int, num_places: int) -> None:
        self.spec, self.num_trials, self.num_places = spec, num_trials, num_places
        self.choices = choices
        self.trials: dict[str, TrialRecord] = {}
        self.live: list[str] = []
        self.sequence = 0
        self.log: list[tuple[list[TrialRecord], set[str], list[Verdict]]] = []
        """What each promotion was asked with, and what came out."""

    def run(self) -> None:
        turn = 0
        while True:
            while len(self.live) < self.num_places and self._start():
                pass
            if not self.live:
                break
            choice = self.choices[turn % len(self.choices)]
            turn += 1
            self._advance(self.live[choice % len(self.live)], fails=choice % 11 == 10)
        for verdict in never_promoted(self.spec, self.rows()):
            self._decide(verdict)
        for trial in self.rows():
            if trial.finished_at_ms is None:
                self._end(trial.id, TrialState.PRUNED)

    def rows(self) -> list[TrialRecord]:
        return list(self.trials.values())

    def _start(self) -> bool:
        for is_last in (False, True):
            verdicts = promoted(self.spec, self.rows(), live=self.live, is_last=is_last)
            self.log.append((self.rows(), set(self.live), verdicts))
            if verdicts:
                (verdict,) = verdicts
                self._decide(verdict)
                assert verdict.trial_id not in self.live, "a trial has one run at a time"
                self.live.append(verdict.trial_id)
                return True
            if not is_last and len(self.trials) < self.num_trials:
                number = len(self.trials)
                trial = trial_record(self.spec, number, {"optimizer.lr": 0.001}, state=TrialState.RUNNING)
                self.trials[trial.id] = replace(trial, started_at_ms=0)
                self.live.append(trial.id)
                return True
            if self.live:
                return False
        return False

    def _advance(self, trial_id: str, *, fails: bool) -> None:
        trial = self.trials[trial_id]
        if fails:
            self.live.remove(trial_id)
            self._end(trial_id, TrialState.FAILED)
            return
        rung = len(trial.rungs)
        if rung == NUM_RUNGS:
            self.live.remove(trial_id)
            self._end(trial_id, TrialState.COMPLETED)
            return
        stops = next_wait(self.spec, trial, self.spec.base, range(1, NUM_RUNGS + 1)) == rung
        value = value_of(self.spec, trial.number)
        decision = on_arrival(self.spec, trial, rung, value, ())
        self.sequence += 1
        arrived = rung_record(
            trial.number,
            value,
            rung=rung,
            sequence=self.sequence,
            decision=None if decision is None else decision.decision,
        )
        self.trials[trial_id] = replace(trial, rungs=(*trial.rungs, arrived))
        assert stops == (decision is None), "a run ends exactly where its trial waits"
        if stops:
            self.live.remove(trial_id)

    def _decide(self, verdict: Verdict) -> None:
        trial = self.trials[verdict.trial_id]
        assert trial.rungs[-1].decision is None, "nothing is decided twice"
        decided = replace(trial.rungs[-1], decision=verdict.decision.decision, explanation=verdict.decision.explanation)
        self.trials[trial.id] = replace(trial, rungs=(*trial.rungs[:-1], decided))

    def _end(self, trial_id: str, state: TrialState) -> None:
        self.trials[trial_id] = replace(self.trials[trial_id], state=state, finished_at_ms=1)


def value_of(spec: ExperimentSpec, number: int) -> float:
    cost = float(number * 7919 % 101)
    return cost if spec.objective.direction == "minimize" else -cost


def group(spec: ExperimentSpec, trial: TrialRecord) -> int:
    return bracket_of(spec, spec.scheduler, trial.number) if spec.scheduler.kind == "hyperband" else 0


games = st.builds(
    Played,
    st.sampled_from(list(SPECS.values())),
    st.lists(st.integers(0, 100), min_size=1, max_size=40),
    num_trials=st.integers(1, 20),
    num_places=st.integers(1, 5),
)


@settings(max_examples=60, deadline=None)
@given(games)
def test_search_ends_with_every_trial_ended_and_one_of_each_bracket_completed(game: Played) -> None:
    game.run()
    assert len(game.trials) == game.num_trials
    for bracket in {group(game.spec, trial) for trial in game.rows()}:
        states = [trial.state for trial in game.rows() if group(game.spec, trial) == bracket]
        assert TrialState.COMPLETED in states or TrialState.PRUNED not in states


@settings(max_examples=60, deadline=None)
@given(games)
def test_who_is_among_the_best_third_of_a_rung_is_promoted_or_has_failed(game: Played) -> None:
    game.run()
    factor = 2 if game.spec.scheduler.kind == "hyperband" else 3
    for rung in range(NUM_RUNGS):
        for bracket in {group(game.spec, trial) for trial in game.rows()}:
            there = [t for t in game.rows() if group(game.spec, t) == bracket and len(t.rungs) > rung]
            sign = 1 if game.spec.objective.direction == "minimize" else -1
            best = sorted(there, key=lambda t: (sign * value_of(game.spec, t.number), t.number))
            for trial in best[: len(there) // factor]:
                assert trial.rungs[rung].decision is RungDecision.CONTINUE


@settings(max_examples=60, deadline=None)
@given(games)
def test_better_trial_of_a_rung_is_promoted_before_a_worse_one(game: Played) -> None:
    game.run()
    sign = 1 if game.spec.objective.direction == "minimize" else -1
    for rows, live, verdicts in game.log:
        for verdict in verdicts:
            chosen = next(trial for trial in rows if trial.id == verdict.trial_id)
            rivals = [
                trial
                for trial in rows
                if is_paused(trial) and trial.id not in live and group(game.spec, trial) == group(game.spec, chosen)
            ]
            same = [trial for trial in rivals if trial.rungs[-1].rung == verdict.rung]
            costs = [sign * value_of(game.spec, trial.number) for trial in same]
            assert sign * value_of(game.spec, chosen.number) == min(costs)


@settings(max_examples=30, deadline=None)
@given(games, st.randoms(use_true_random=False))
def test_promotion_is_a_function_of_the_rows_in_any_order(game: Played, random: object) -> None:
    game.run()
    for rows, live, verdicts in game.log:
        shuffled = list(rows)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        if verdicts and not any("nothing more comes" in verdict.decision.explanation for verdict in verdicts):
            assert promoted(game.spec, shuffled, live=live) == verdicts


def paused(number: int, value: float, rung: int = 0, **fields: object) -> TrialRecord:
    before = tuple(rung_record(number, value, rung=earlier) for earlier in range(rung))
    waiting = rung_record(number, value, rung=rung, decision=None)
    trial = trial_record(SPECS["asha"], number, {"optimizer.lr": 0.001}, state=TrialState.RUNNING)
    return replace(trial, rungs=(*before, waiting), **fields)  # type: ignore[arg-type]


def test_place_goes_to_the_highest_rung_first() -> None:
    rows = [paused(number, float(number), rung=1) for number in range(3)] + [
        paused(number, float(number)) for number in range(3, 12)
    ]
    (verdict,) = promoted(SPECS["asha"], rows, live=())
    assert (verdict.trial_id, verdict.rung) == ("trl_0", 1)
    assert verdict.decision.explanation == "rank 1 of 3 at rung 1 with 0.0000; the best 1 are promoted"
    (verdict,) = promoted(SPECS["asha"], rows[:1] + rows[3:], live=())
    assert (verdict.trial_id, verdict.rung) == ("trl_3", 0), "one of one at rung 1 is no third"


def test_fewer_than_a_third_are_promoted_only_when_nothing_more_comes() -> None:
    rows = [paused(0, 2.0), paused(1, 1.0)]
    assert promoted(SPECS["asha"], rows, live=()) == []
    (verdict,) = promoted(SPECS["asha"], rows, live=(), is_last=True)
    assert verdict.trial_id == "trl_1"
    over = replace(paused(2, 0.5), state=TrialState.COMPLETED, finished_at_ms=1)
    assert promoted(SPECS["asha"], [*rows, over], live=(), is_last=True) == []


def test_trial_whose_run_has_not_ended_is_not_promoted() -> None:
    rows = [paused(number, float(number)) for number in range(6)]
    (verdict,) = promoted(SPECS["asha"], rows, live={"trl_0"})
    assert verdict.trial_id == "trl_1"


def test_what_is_never_promoted_ends_with_its_rank() -> None:
    rows = [paused(number, float(number)) for number in range(2)]
    verdicts = never_promoted(SPECS["asha"], rows)
    assert [(verdict.trial_id, verdict.decision.decision) for verdict in verdicts] == [
        ("trl_0", RungDecision.STOP),
        ("trl_1", RungDecision.STOP),
    ]
    assert verdicts[1].decision.explanation == "rank 2 of 2 at rung 0; the search ended without promoting it"


def test_baselines_neither_wait_nor_count() -> None:
    baseline = replace(paused(0, -1.0), kind=TrialKind.BASELINE)
    assert next_wait(SPECS["asha"], baseline, SPECS["asha"].base, (1000, 3000)) is None
    rows = [baseline, *(paused(number, float(number)) for number in (1, 2, 3))]
    (verdict,) = promoted(SPECS["asha"], rows, live=())
    assert verdict.decision.explanation.startswith("rank 1 of 3")


def test_fork_waits_first_at_a_rung_behind_its_start() -> None:
    start = {"kind": "fork", "path": "x", "sha256": "0" * 64, "step": 6}
    config = TrainConfig.model_validate(train_document(loop=LOOP, start=start))
    trial = trial_record(SPECS["asha"], 0, {"optimizer.lr": 0.001}, state=TrialState.RUNNING)
    # Rungs at steps 2, 6 and 18.
    assert next_wait(SPECS["asha"], trial, config, (1000, 3000, 9000)) == 2


@pytest.mark.parametrize("value", [None, float("nan")])
def test_value_that_is_not_finite_does_not_wait(value: float | None) -> None:
    trial = trial_record(SPECS["asha"], 0, {"optimizer.lr": 0.001}, state=TrialState.RUNNING)
    decision = on_arrival(SPECS["asha"], trial, 0, value, ())
    assert decision is not None
    assert decision.decision is RungDecision.STOP
