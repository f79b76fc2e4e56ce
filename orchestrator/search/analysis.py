"""What an experiment's trials show: how the best was found, the Pareto front, slices, which parameters matter.

A pure function of the spec and the rows. It takes seconds, so it runs in a process of its own
(`orchestrator.execution.analyst`), and what it gives is kept beside the experiment.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.search.importance import Importance, importances
from orchestrator.search.outcome import directions, objective_values, references, veto, violations
from orchestrator.search.pareto import pareto_front
from orchestrator.search.points import as_trials
from orchestrator.search.space import parameters
from orchestrator.spec import ExperimentSpec, Scalar
from orchestrator.states import TrialState
from orchestrator.store.records import TrialKind, TrialRecord

MAX_SLICE = 2000
"""Most trials in the slices."""


@dataclass(frozen=True, kw_only=True)
class Improvement:
    """A trial that was better than all that had completed before it.

    Attributes:
        num_completed: completed trials by then, itself included.
        tokens: training tokens of all trials that had ended by then.
    """

    trial_id: str
    number: int
    objective: float
    num_completed: int
    tokens: int
    finished_at_ms: int


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """A trial on the Pareto front, with its value of every objective."""

    trial_id: str
    number: int
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Slices:
    """The trials as columns: a parameter's column against the objective's is its slice.

    Attributes:
        num_trials: rows here; `num_eligible` is of how many they are taken, evenly over their order, the best included.
        further_values: of each objective beside the first, None where a trial has no value.
        params: parameter -> its value in each trial, None where it does not exist.
    """

    num_trials: int
    num_eligible: int
    basis: str
    trial_ids: tuple[str, ...]
    numbers: tuple[int, ...]
    states: tuple[str, ...]
    objective: tuple[float | None, ...]
    objective_tokens: tuple[int | None, ...]
    further_values: tuple[tuple[float | None, ...], ...]
    params: dict[str, tuple[Scalar, ...]]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All of it. Lists are empty where there is nothing to show."""

    objectives: tuple[dict[str, Any], ...]
    num_completed: int
    num_trials: int
    best_so_far: tuple[Improvement, ...]
    best_basis: str
    front: tuple[FrontPoint, ...]
    front_basis: str
    slices: Slices
    importance: tuple[Importance, ...]


def analysis(spec: ExperimentSpec, history: Sequence[TrialRecord]) -> Analysis:
    """The analysis of an experiment's trials. Where points have several seeds, a point is one trial here."""
    trials = sorted(
        (trial for trial in as_trials(spec, history) if trial.kind is TrialKind.SEARCH), key=lambda trial: trial.number
    )
    known = references(spec.objective, history)
    completed = [trial for trial in trials if trial.state is TrialState.COMPLETED and trial.objective is not None]
    keeping = [trial for trial in completed if not violations(spec.objective, trial, known)]
    num_beyond = len(completed) - len(keeping)
    left_out = f"; {num_beyond} beyond a limit of objective.constraints are left out" if num_beyond else ""
    front_ids = pareto_front(spec, keeping) if spec.further_objectives else frozenset()
    objectives = (spec.objective, *spec.further_objectives)
    return Analysis(
        objectives=tuple(
            {"metric": one.metric, "domain": one.domain, "direction": direction}
            for one, direction in zip(objectives, directions(spec), strict=True)
        ),
        num_completed=len(completed),
        num_trials=len(trials),
        best_so_far=tuple(_improvements(spec, trials, keeping)),
        best_basis=f"{len(keeping)} completed trials of the search by {spec.objective.metric}{left_out}",
        front=tuple(
            FrontPoint(
                trial_id=trial.id,
                number=trial.number,
                values=objective_values(trial, len(spec.further_objectives)) or (),
            )
            for trial in keeping
            if trial.id in front_ids
        ),
        front_basis=f"{len(keeping)} completed trials of the search with {len(objectives)} objectives{left_out}"
        if spec.further_objectives
        else "one objective: there is no front",
        slices=_slices(spec, trials, {trial.id for trial in completed if veto(spec.objective, trial, known) is None}),
        importance=importances(spec, trials),
    )


def _improvements(
    spec: ExperimentSpec, trials: Sequence[TrialRecord], keeping: Sequence[TrialRecord]
) -> list[Improvement]:
    sign = 1 if spec.objective.direction == "minimize" else -1
    ended = sorted(
        (trial for trial in trials if trial.finished_sequence is not None),
        key=lambda trial: trial.finished_sequence or 0,
    )
    counted = {trial.id for trial in keeping}
    found: list[Improvement] = []
    best, tokens, num_completed = math.inf, 0, 0
    for trial in ended:
        tokens += trial.objective_tokens or 0
        if trial.id not in counted or trial.objective is None:
            continue
        num_completed += 1
        if sign * trial.objective < best:
            best = sign * trial.objective
            found.append(
                Improvement(
                    trial_id=trial.id,
                    number=trial.number,
                    objective=trial.objective,
                    num_completed=num_completed,
                    tokens=tokens,
                    finished_at_ms=trial.finished_at_ms or 0,
                )
            )
    return found


def _slices(spec: ExperimentSpec, trials: Sequence[TrialRecord], may_win: set[str]) -> Slices:
    shown = [trial for trial in trials if trial.state in (TrialState.COMPLETED, TrialState.PRUNED)]
    sign = 1 if spec.objective.direction == "minimize" else -1
    best = min(
        (trial for trial in shown if trial.id in may_win and trial.objective is not None),
        key=lambda trial: sign * (trial.objective or 0.0),
        default=None,
    )
    taken = shown
    if len(shown) > MAX_SLICE:
        indices = {index * len(shown) // MAX_SLICE for index in range(MAX_SLICE)}
        taken = [trial for index, trial in enumerate(shown) if index in indices or trial is best]
    names = [parameter.name for parameter in parameters(spec)]
    further = range(len(spec.further_objectives))
    return Slices(
        num_trials=len(taken),
        num_eligible=len(shown),
        basis="completed trials with their objective, pruned ones with that at the tokens they reached",
        trial_ids=tuple(trial.id for trial in taken),
        numbers=tuple(trial.number for trial in taken),
        states=tuple(trial.state.value for trial in taken),
        objective=tuple(trial.objective for trial in taken),
        objective_tokens=tuple(trial.objective_tokens for trial in taken),
        further_values=tuple(
            tuple(None if trial.further_values is None else trial.further_values[index] for trial in taken)
            for index in further
        ),
        params={name: tuple(trial.params.get(name) for trial in taken) for name in names},
    )
