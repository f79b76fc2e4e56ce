"""I7 in a simulated history: every proposal and every decision follows from the rows that were there before it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.search.points import as_trials, points_of
from orchestrator.search.stop import decide
from orchestrator.search.waiting import promotes
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause
from orchestrator.store.records import RungDecision
from tests.support.history import Violation
from tests.support.replay import promotions_not_replayed, rows_at
from tests.support.simulation import rules


def decided(spec: ExperimentSpec, trials: Sequence[Any], events: Sequence[Any]) -> Iterator[Violation]:
    """What does not follow.

    Args:
        trials: of an experiment, by number.
        events: of all experiments.
    """
    if spec.replicas > 1:
        yield from _proposed_as_points(spec, trials)
        yield from _decided_as_points(spec, trials)
        return
    originals = [trial for trial in trials if trial.parent_trial_id is None]
    for trial in originals:
        proposal = rules.propose(spec, trial.number, trials, before=trial.asked_sequence)
        if proposal is None or proposal.params != trial.params:
            yield Violation("I7", f"trial {trial.id} does not follow from the rows before it")
    if spec.scheduler.kind == "pbt":
        yield from _copied(trials)
    elif promotes(spec):
        yield from promotions_not_replayed(spec, trials, events)
    elif not spec.synchronous:
        yield from _decided_on_arrival(trials)


def _decided_on_arrival(trials: Sequence[Any]) -> Iterator[Violation]:
    arrivals = sorted((rung for trial in trials for rung in trial.rungs), key=lambda rung: rung.sequence)
    for index, rung in enumerate(arrivals):
        earlier = [record for record in arrivals[:index] if record.rung == rung.rung]
        decision = rules.decide(rung.value, earlier)
        if (rung.decision, rung.explanation) != (decision.decision, decision.explanation):
            yield Violation("I7", f"rung {rung.rung} of trial {rung.trial_id}: {rung.explanation}")


def _copied(trials: Sequence[Any]) -> Iterator[Violation]:
    """For each member of a population that ends at a rung one copy begins there."""
    by_id = {trial.id: trial for trial in trials}
    ended = Counter(trial.rungs[-1].rung for trial in trials if trial.cause is Cause.PBT)
    begun: Counter[int] = Counter()
    for trial in (trial for trial in trials if trial.parent_trial_id is not None):
        before = [
            rung
            for rung in by_id[trial.parent_trial_id].rungs
            if rung.sequence < trial.asked_sequence and rung.decision is RungDecision.CONTINUE
        ]
        begun[before[-1].rung if before else -1] += 1
    if ended != begun:
        yield Violation("I7", f"at these rungs members ended: {dict(ended)}; at these, copies began: {dict(begun)}")


def _proposed_as_points(spec: ExperimentSpec, trials: Sequence[Any]) -> Iterator[Violation]:
    for point in points_of(spec, trials):
        first = point.replicas[0]
        before = as_trials(spec, rows_at(trials, first.asked_sequence))
        proposal = rules.propose(spec, point.record.number, before)
        if proposal is None or any(trial.params != proposal.params for trial in point.replicas):
            yield Violation("I7", f"point {point.record.number} does not follow from the rows before it")


def _decided_as_points(spec: ExperimentSpec, trials: Sequence[Any]) -> Iterator[Violation]:
    """The seeds of a point share their decisions; one that is not of a batch follows from the points before it."""
    points = points_of(spec, trials)
    for point in points:
        for rung in {record.rung for trial in point.replicas for record in trial.rungs}:
            said = {record.decision for trial in point.replicas for record in trial.rungs if record.rung == rung}
            if len(said - {None}) > 1:
                yield Violation("I7", f"rung {rung} of point {point.record.number} was decided by seed: {said}")
        for here in () if spec.synchronous else point.record.rungs:
            earlier = [
                record
                for other in points
                for record in other.record.rungs
                if record.rung == here.rung and record.sequence < here.sequence
            ]
            own = [record for record in point.record.rungs if record.rung < here.rung]
            decision = decide(spec, here.rung, here.value, earlier, number=point.record.number, own=own)
            if here.decision is not None and here.explanation != decision.explanation:
                yield Violation("I7", f"rung {here.rung} of point {point.record.number}: {here.explanation}")
