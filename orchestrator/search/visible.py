"""What a proposal may know of the trials before it."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.spec import ExperimentSpec
from orchestrator.states import TrialState
from orchestrator.store.records import TrialKind, TrialRecord


def visible(spec: ExperimentSpec, number: int, history: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The search trials that trial `number` may know of, by number.

    In a synchronous experiment those are the batches before its own as they ended, and of its own batch only what was
    proposed: how far it has come by now depends on the machine.

    Raises:
        ValueError: the experiment is synchronous and an earlier batch has not ended.
    """
    trials = sorted(
        (trial for trial in history if trial.kind is TrialKind.SEARCH and trial.number < number),
        key=lambda trial: trial.number,
    )
    if not spec.synchronous:
        return trials
    first = first_of_batch(spec, number)
    found: list[TrialRecord] = []
    for trial in trials:
        if trial.number < first and trial.finished_at_ms is None:
            raise ValueError(f"trial {number} opens a batch, but trial {trial.number} of an earlier one has not ended")
        if trial.number >= first and trial.config is not None:
            trial = replace(trial, state=TrialState.RUNNING, cause=None, objective=None, rungs=(), finished_at_ms=None)
        found.append(trial)
    return found


def without_added(number: int, history: Sequence[TrialRecord]) -> tuple[int, Sequence[TrialRecord]]:
    """Trial `number` and the trials before it, numbered as if none had been added by hand.

    So what a user adds in the middle of a search changes nothing of what the search does afterwards.

    Args:
        history: in any order; trials with a higher number are numbered among the others but play no part.
    """
    added = sorted(trial.number for trial in history if trial.kind is TrialKind.ADDED)
    if not added:
        return number, history
    kept = [
        replace(trial, number=trial.number - bisect_left(added, trial.number))
        for trial in history
        if trial.kind is not TrialKind.ADDED
    ]
    return number - bisect_left(added, number), kept


def first_of_batch(spec: ExperimentSpec, number: int) -> int:
    """The number of the first trial in the batch of trial `number` of a synchronous experiment."""
    return number - (number - len(spec.baselines)) % spec.batch_size
