"""Ten thousand simulated histories with faults keep I1 to I9, and the checker sees every bug that is put in.

A failing seed is played again with `simulate(SEED)`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from orchestrator.states import ExperimentState, TrialState, check_transition, is_terminal
from tests.support.simulation import model, processes
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
    """Takeovers, two daemons, prunings, lost trials and cancels all happen, or the rest would prove nothing."""
    outcomes = [simulate(seed) for seed in range(300)]
    happened = {word for outcome in outcomes for entry in outcome.trace for word in entry if isinstance(word, str)}
    assert {"Launch", "EndDriver", "Cancel", "Pause", "StartService", "Fenced", "a", "b"} <= happened
    states = {row[2] for outcome in outcomes for table in outcome.tables for row in table}
    assert {TrialState.COMPLETED, TrialState.PRUNED, TrialState.FAILED, TrialState.CANCELLED} <= states


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


@pytest.mark.parametrize(
    ("bug", "invariant"),
    [
        (no_fencing, "I2"),
        (acknowledged_before_commit, "I1"),
        (rung_forgotten, "I7"),
        (told_twice, "I7"),
        (terminal_trial_retried, "I2"),
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
