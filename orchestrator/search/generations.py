"""Which generation each trial of a population-based search belongs to, worked out from the rows.

A generation is over once `size` of its trials have completed; the next trial that is asked opens the following one.
What was completed when a trial was asked is in the rows: the sequence numbers of its asking and of the others' ends,
and in a synchronous experiment the batches. Trials of a warm start (negative numbers) are of the first generation,
before all others.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.search.outcome import objective_values
from orchestrator.search.visible import first_of_batch
from orchestrator.spec import ExperimentSpec
from orchestrator.states import TrialState
from orchestrator.store.records import TrialRecord


class Generations(NamedTuple):
    """The population's past.

    Attributes:
        of_trial: trial number -> generation, from 0; the trial that is asked next included.
        members: of each generation that is over, the first `size` of the trials that had completed by then, by number.
    """

    of_trial: dict[int, int]
    members: list[list[TrialRecord]]


def generations(spec: ExperimentSpec, trials: Sequence[TrialRecord], *, number: int, size: int) -> Generations:
    """The generations of `trials` (search trials, by number) and of trial `number`, which is asked after them."""
    ends = sorted((_end(spec, trial), trial.number, trial) for trial in trials if is_evaluated(spec, trial))
    asked = [(_asking(spec, trial), trial.number) for trial in trials if trial.number >= 0]
    asked.append((float(first_of_batch(spec, number)) if spec.synchronous else math.inf, number))
    of_trial = {trial.number: 0 for trial in trials if trial.number < 0}
    members: list[list[TrialRecord]] = []
    completed: list[TrialRecord] = []
    num_ended = 0
    for moment, asked_number in asked:
        while num_ended < len(ends) and ends[num_ended][0] <= moment:
            trial = ends[num_ended][2]
            num_ended += 1
            if of_trial[trial.number] == len(members):
                completed.append(trial)
        if len(completed) >= size:
            members.append(sorted(completed, key=lambda trial: trial.number)[:size])
            completed = []
        of_trial[asked_number] = len(members)
    return Generations(of_trial, members)


def is_evaluated(spec: ExperimentSpec, trial: TrialRecord) -> bool:
    """True if the trial trained its whole budget and has a value for every objective."""
    values = objective_values(trial, len(spec.further_objectives))
    return trial.state is TrialState.COMPLETED and values is not None


def _asking(spec: ExperimentSpec, trial: TrialRecord) -> float:
    return first_of_batch(spec, trial.number) if spec.synchronous else trial.asked_sequence


def _end(spec: ExperimentSpec, trial: TrialRecord) -> float:
    """The moment from which the trial's end is known, on the scale of `_asking`."""
    if trial.number < 0:
        return -math.inf
    if spec.synchronous:
        return trial.number + 1
    assert trial.finished_sequence is not None
    return trial.finished_sequence
