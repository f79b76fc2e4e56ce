"""Ten thousand simulated histories with faults keep I1 to I9, and the checker sees every bug that is put in.

A failing seed is played again with `simulate(SEED)`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from orchestrator.states import Cause, ExperimentState, TrialState, check_transition, is_terminal
from orchestrator.store.records import RungDecision
from tests.support.simulation import driver, model, processes, rules
from tests.support.simulation.records import copied
from tests.support.simulation.simulate import simulate
from tests.support.simulation.world import Process, Steps, World

HISTORIES = 10_000
CHUNK = 500
ENOUGH = 1000
"""Histories within which a bug has to be seen."""


@pytest.mark.parametrize("first", range(0, HISTORIES, CHUNK))
def test_I1_to_I9_hold_in_every_history_whatever_breaks(first: int) -> None:
    broken = {seed: found for seed in range(first, first + CHUNK) if (found := simulate(seed).violations)}
    assert not broken


def test_same_seed_is_the_same_history() -> None:
    for seed in range(20):
        assert simulate(seed) == simulate(seed)


def test_histories_hold_what_they_are_about() -> None:
    """Takeovers, two daemons, prunings of all kinds, lost trials and cancels happen, or nothing would be proved."""
    outcomes = [simulate(seed) for seed in range(300)]
    happened = {word for outcome in outcomes for entry in outcome.trace for word in entry if isinstance(word, str)}
    assert {"Launch", "EndDriver", "Cancel", "Pause", "StartService", "Fenced", "a", "b"} <= happened
    rows = [row for outcome in outcomes for table in outcome.tables for row in table]
    states = {row[2] for row in rows}
    assert {TrialState.COMPLETED, TrialState.PRUNED, TrialState.FAILED, TrialState.CANCELLED} <= states
    assert {Cause.ASHA, Cause.HYPERBAND, Cause.PBT} <= {row[3] for row in rows}


def no_fencing(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Writes of a driver whose epoch is over are taken."""
    monkeypatch.setattr(model.Experiments, "_fenced", lambda self, experiment_id, epoch: self.get(experiment_id))
    return {}


def acknowledged_before_commit(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The API answers, and commits then."""

    def hasty(world: World, me: Process, request: Any) -> Steps:
        if not isinstance(request, processes.Submit):
            yield from processes.api(world, me, request)
            return
        yield
        work = model.ModelWork(world.store)
        submission = work.experiments.submit(request.spec, document=request.document, key=request.key)
        world.send(request.sender, (processes.Submit, submission.experiment.id))
        yield
        world.store.commit(work)

    return {"answer": hasty}


def rung_forgotten(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A takeover forgets the rungs that the trials it interrupts have arrived at."""
    lose_runs = model.Trials.lose_runs

    def forgetful(self: model.Trials, experiment_id: str, **options: Any) -> Any:
        lost = lose_runs(self, experiment_id, **options)
        for run in lost:
            self._work.change("trials", run.trial_id, rungs=())
        return lost

    monkeypatch.setattr(model.Trials, "lose_runs", forgetful)
    return {}


def told_twice(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """After a takeover the sampler is told again what it had been told."""
    propose = model.Trials.propose

    def repetitive(self: model.Trials, experiment_id: str, *, epoch: int, choose: Callable[..., Any]) -> Any:
        def choose_again(number: int, history: Sequence[Any]) -> Any:
            ended = [trial for trial in history if trial.finished_at_ms is not None]
            return choose(number, [*ended, *history] if epoch > 1 else history)

        return propose(self, experiment_id, epoch=epoch, choose=choose_again)

    monkeypatch.setattr(model.Trials, "propose", repetitive)
    return {}


def terminal_trial_retried(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A new driver runs again what ended under an earlier one."""
    waiting = model.Trials.waiting

    def generous(self: model.Trials, experiment_id: str) -> tuple[Any, ...]:
        epoch = self._work.experiments.get(experiment_id).epoch
        ended = [
            trial for trial in self.history(experiment_id) if trial.state in (TrialState.FAILED, TrialState.PRUNED)
        ]
        return (*waiting(self, experiment_id), *(trial for trial in ended if trial.epoch < epoch and not trial.rungs))

    def lenient(current: Any, following: Any) -> None:
        if not isinstance(current, TrialState):
            check_transition(current, following)

    monkeypatch.setattr(model.Trials, "waiting", generous)
    monkeypatch.setattr(model, "check_transition", lenient)
    monkeypatch.setattr(model, "is_terminal", lambda state: isinstance(state, ExperimentState) and is_terminal(state))
    return {}


def promotion_forgotten(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A takeover forgets the promotions of trials that had not gone on yet: they were in the driver's memory only."""
    lose_runs = model.Trials.lose_runs

    def forgetful(self: model.Trials, experiment_id: str, **options: Any) -> Any:
        for trial in self.waiting(experiment_id):
            if trial.rungs and trial.rungs[-1].decision is RungDecision.CONTINUE:
                undecided = copied(trial.rungs[-1])
                undecided.decision = undecided.explanation = None
                self._work.change("trials", trial.id, rungs=(*trial.rungs[:-1], undecided))
        return lose_runs(self, experiment_id, **options)

    monkeypatch.setattr(model.Trials, "lose_runs", forgetful)
    return {"kind": "promote", "synchronous": False, "num_steps": 400}


def copies_after_the_decision(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What goes on in place of the worst of a population is added in a transaction after the one that ends them."""
    settle_waiting = driver.Driver.settle_waiting

    def in_two_steps(self: driver.Driver) -> Steps:
        copies: list[Any] = []
        self.add = lambda work, copy: copies.append(copy)
        yield from settle_waiting(self)
        del self.add
        for copy in copies:
            yield from self.persist(lambda work, copy=copy: self.add(work, copy))

    monkeypatch.setattr(driver.Driver, "settle_waiting", in_two_steps)
    return {"kind": "population", "synchronous": False, "max_retries": 100, "num_steps": 400}


def lucky_seed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What becomes of a trial is decided on its own seed."""
    on_arrival = rules.on_arrival
    monkeypatch.setattr(
        rules,
        "on_arrival",
        lambda spec, *rest, **named: on_arrival(spec.model_copy(update={"replicas": 1}), *rest, **named),
    )
    return {"kind": "seeds", "synchronous": False, "num_trials": 2, "num_steps": 400}


@pytest.mark.parametrize(
    ("bug", "invariant"),
    [
        (no_fencing, "I2"),
        (acknowledged_before_commit, "I1"),
        (rung_forgotten, "I7"),
        (told_twice, "I7"),
        (terminal_trial_retried, "I2"),
        (promotion_forgotten, "I7"),
        (copies_after_the_decision, "I7"),
        (lucky_seed, "I7"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_checker_objects_to_a_bug_that_is_put_in(
    bug: Callable[[pytest.MonkeyPatch], dict[str, Any]], invariant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = bug(monkeypatch)
    assert any(
        violation.invariant == invariant for seed in range(ENOUGH) for violation in simulate(seed, **options).violations
    )
