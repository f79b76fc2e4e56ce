"""Decisions replayed: what was recorded, in the order of arrival, gives every proposal and every decision again.

In an asynchronous sweep the order of arrival is part of the input. It is recorded: each proposal, each arrival at a
rung and each end of a trial has its place in the experiment's sequence. So the rows as they were at any moment can be
had from the rows as they are, and the pure functions of `orchestrator.search` asked once more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.search.propose import propose
from orchestrator.search.stop import decide
from orchestrator.search.waiting import waits_at_rungs
from orchestrator.spec import ExperimentSpec
from orchestrator.states import TrialState
from orchestrator.store.records import TrialKind
from tests.support.history import Violation

_NOT_ENDED: dict[str, Any] = {
    "cause": None,
    "objective": None,
    "objective_tokens": None,
    "summary": None,
    "further_values": None,
    "finished_at_ms": None,
    "finished_sequence": None,
}


def rows_at(trials: Sequence[Any], sequence: int) -> list[Any]:
    """The trials as they were when an experiment's sequence came to a number: what came later is taken off.

    Decisions have no number; in an asynchronous sweep that lets no trial wait they are taken on arrival.
    """
    found = []
    for trial in trials:
        if trial.asked_sequence >= sequence:
            continue
        rungs = tuple(rung for rung in trial.rungs if rung.sequence < sequence)
        if trial.finished_sequence is None or trial.finished_sequence >= sequence:
            trial = replace(trial, state=TrialState.RUNNING, rungs=rungs, **_NOT_ENDED)
        found.append(trial)
    return found


def not_replayed(spec: ExperimentSpec, trials: Sequence[Any]) -> Iterator[Violation]:
    """Every proposal, and every decision at a rung, of a sweep that is not what its rows give when asked again.

    Of a sweep whose trials wait at rungs only the proposals.
    """
    for trial in trials:
        if trial.kind is not TrialKind.SEARCH:
            continue
        again = propose(spec, number=trial.number, history=rows_at(trials, trial.asked_sequence))
        if again is None or again.params != trial.params:
            proposed = None if again is None else again.params
            yield Violation("I7", f"trial {trial.number} is at {trial.params}; its rows propose {proposed}")
        for rung in () if waits_at_rungs(spec) else trial.rungs:
            before = rows_at(trials, rung.sequence)
            earlier = [record for other in before for record in other.rungs if record.rung == rung.rung]
            own = next(other for other in before if other.id == trial.id).rungs
            decision = decide(
                spec,
                rung.rung,
                rung.value,
                sorted(earlier, key=lambda record: record.sequence),
                number=trial.number,
                own=own,
            )
            if (decision.decision, decision.explanation) != (rung.decision, rung.explanation):
                yield Violation(
                    "I7", f"trial {trial.number}, rung {rung.rung}: {rung.explanation}; its rows give {decision}"
                )
