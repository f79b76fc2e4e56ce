"""Decisions replayed: what was recorded, in the order of arrival, gives every proposal and every decision again.

In an asynchronous sweep the order of arrival is part of the input. It is recorded: each proposal, each arrival at a
rung and each end of a trial has its place in the experiment's sequence. So the rows as they were at any moment can be
had from the rows as they are, and the pure functions of `orchestrator.search` asked once more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.schedulers import HyperbandScheduler
from orchestrator.search.promote import never_promoted, promoted
from orchestrator.search.propose import propose
from orchestrator.search.stop import bracket_of, decide
from orchestrator.search.waiting import waits_at_rungs
from orchestrator.spec import ExperimentSpec
from orchestrator.states import RunState, TrialState, is_terminal
from orchestrator.store.records import RungDecision, TrialKind
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


def promotions_not_replayed(spec: ExperimentSpec, trials: Sequence[Any], events: Sequence[Any]) -> Iterator[Violation]:
    """Every promotion, and every end of what was never promoted, that is not what the rows gave at its moment.

    Args:
        spec: of an experiment that promotes.
        trials: of it.
        events: the log, in order; those of other experiments are passed over.
    """
    there = {trial.id: trial for trial in trials}
    known: dict[str, Any] = {}
    live: set[str] = set()
    for event in events:
        trial = there.get(event.trial_id or "")
        if trial is None:
            continue
        if event.kind == "trial.proposed":
            if promoted(spec, list(known.values()), live=live):
                yield Violation("I7", f"trial {trial.number} was begun though one that waited could go on")
            known[trial.id] = replace(trial, state=TrialState.RUNNING, rungs=(), **_NOT_ENDED)
        elif event.kind == "run.state":
            is_live = event.data["to"] in (RunState.STARTING, RunState.RUNNING)
            (live.add if is_live else live.discard)(trial.id)
        elif event.kind == "trial.state" and is_terminal(TrialState(event.data["to"])):
            known[trial.id] = replace(trial, rungs=known[trial.id].rungs)
        elif event.kind == "rung.arrived":
            arrived = next(rung for rung in trial.rungs if rung.rung == event.data["rung"])
            rungs = (*known[trial.id].rungs, replace(arrived, decision=None, explanation=None))
            known[trial.id] = replace(known[trial.id], rungs=rungs)
        elif event.kind == "rung.decided":
            decided = next(rung for rung in trial.rungs if rung.rung == event.data["rung"])
            if _is_judged(spec, trial, decided):
                yield from _not_given(spec, trial, decided, list(known.values()), live)
            known[trial.id] = replace(known[trial.id], rungs=(*known[trial.id].rungs[:-1], decided))


def _is_judged(spec: ExperimentSpec, trial: Any, rung: Any) -> bool:
    scheduler = spec.scheduler
    return not isinstance(scheduler, HyperbandScheduler) or rung.rung >= bracket_of(spec, scheduler, trial.number)


def _not_given(
    spec: ExperimentSpec, trial: Any, decided: Any, known: Sequence[Any], live: set[str]
) -> Iterator[Violation]:
    if decided.decision is RungDecision.CONTINUE:
        given = promoted(spec, known, live=live) or promoted(spec, known, live=live, is_last=not live)
    else:
        given = [verdict for verdict in never_promoted(spec, known) if verdict.trial_id == trial.id]
        if live or promoted(spec, known, live=live, is_last=True):
            yield Violation("I7", f"trial {trial.number} was ended while others could still go on")
    said = (trial.id, decided.rung, decided.explanation)
    if said not in [(verdict.trial_id, verdict.rung, verdict.decision.explanation) for verdict in given]:
        yield Violation(
            "I7", f"rung {decided.rung} of trial {trial.number}: {decided.explanation}; the rows give {given}"
        )
