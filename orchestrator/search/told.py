"""What Optuna's samplers are told of each trial."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from orchestrator.samplers import GPSampler, NSGA2Sampler, NSGA3Sampler
from orchestrator.schedulers import NoScheduler
from orchestrator.search.distributions import distribution, to_optuna
from orchestrator.search.generations import generations
from orchestrator.search.grid import AnyDomain
from orchestrator.search.outcome import CANNOT_RUN, References, directions, excesses, in_words, objective_values
from orchestrator.search.points import is_paused
from orchestrator.search.space import parameters
from orchestrator.search.waiting import promotes
from orchestrator.spec import ExperimentSpec, Scalar
from orchestrator.states import Cause, TrialState
from orchestrator.store.records import RungRecord, TrialRecord

if TYPE_CHECKING:
    import optuna

RUNS = "runs"
"""The constraint that a point which cannot run violates."""
_GENERATION = {"nsga2": "NSGAIISampler:generation", "nsga3": "NSGAIIISampler:generation"}
"""Where Optuna's sampler notes a trial's generation."""

Outcome = tuple["optuna.trial.TrialState", tuple[float, ...] | None, dict[str, float] | None]
"""State, values and constraints that a trial is told with."""


@dataclass(frozen=True)
class Terms:
    """All that a trial is told by besides its own row.

    Attributes:
        known: what the objective's limits are relative to.
        worst: of a Gaussian process: the worst completed value of each objective, None if none has completed.
        some_cannot_run: of a Gaussian process: whether any point cannot run.
    """

    spec: ExperimentSpec
    known: References
    worst: tuple[float, ...] | None
    some_cannot_run: bool

    def told(self, trial: TrialRecord, *, number: int, generation: int | None) -> "optuna.trial.FrozenTrial":
        """The trial as Optuna has it.

        Args:
            number: its place among those that are told.
            generation: of a population; None for other samplers.
        """
        state, values, constraints = self._outcome(trial)
        # Pruned trials are compared by their newest value with one objective only; Optuna has no such order for more.
        rungs = () if self.spec.further_objectives else trial.rungs
        return self._frozen(
            number,
            trial.params,
            state=state,
            values=values,
            constraints=constraints,
            intermediate_values={self._step(rung): rung.value for rung in rungs if rung.value is not None},
            system_attrs={} if generation is None else {_GENERATION[self.spec.sampler.kind]: generation},
        )

    def rejected(self, point: Mapping[str, Scalar], *, number: int) -> "optuna.trial.FrozenTrial":
        """A point that may not be, told as one that cannot run."""
        import optuna

        as_complete = self.worst is not None
        limits = [in_words(constraint) for constraint in self.spec.objective.constraints]
        return self._frozen(
            number,
            point,
            state=optuna.trial.TrialState.COMPLETE if as_complete else optuna.trial.TrialState.PRUNED,
            values=self.worst,
            constraints={RUNS: 1.0} | dict.fromkeys(limits, 0.0),
        )

    def _frozen(
        self,
        number: int,
        point: Mapping[str, Scalar],
        *,
        values: tuple[float, ...] | None,
        **fields: Any,
    ) -> "optuna.trial.FrozenTrial":
        import optuna

        trial = optuna.trial.create_trial(
            values=None if values is None else list(values),
            params={name: to_optuna(self._domains[name], value) for name, value in point.items()},
            distributions={name: self._distributions[name] for name in point},
            **fields,
        )
        trial.number = trial._trial_id = number
        return trial

    def _outcome(self, trial: TrialRecord) -> Outcome:
        import optuna

        states = optuna.trial.TrialState
        # What waits to be promoted may wait until the search ends; by then its values would help nobody.
        is_paused_now = promotes(self.spec) and is_paused(trial)
        if trial.finished_at_ms is None and not is_paused_now:
            return states.RUNNING, None, None
        limits = excesses(self.spec.objective, trial, self.known)
        values = objective_values(trial, len(self.spec.further_objectives))
        state, constraints = states.FAIL, None
        if trial.state is TrialState.COMPLETED and values is not None:
            state, constraints = states.COMPLETE, {RUNS: 0.0} | limits
        elif is_paused_now or (trial.state is TrialState.PRUNED and trial.cause is not Cause.USER):
            state, constraints = states.PRUNED, {RUNS: 0.0} | limits
        elif trial.cause in CANNOT_RUN:
            state, constraints = states.PRUNED, {RUNS: 1.0} | limits
        told_values = values if state is states.COMPLETE else None
        if isinstance(self.spec.sampler, GPSampler) and constraints is not None:
            if constraints[RUNS] > 0 and self.worst is not None:
                return states.COMPLETE, self.worst, constraints
            if not self.some_cannot_run:
                # Each constraint is a Gaussian process of its own: none for what always holds.
                constraints = {name: excess for name, excess in constraints.items() if name != RUNS} or None
        return state, told_values, constraints

    def _step(self, rung: RungRecord) -> int:
        """What orders the values of pruned trials: tokens, or the rung where trials have theirs at different tokens."""
        in_tokens = isinstance(self.spec.scheduler, NoScheduler) or self.spec.scheduler.resource == "tokens"
        return rung.tokens if in_tokens else rung.rung

    @cached_property
    def _domains(self) -> dict[str, AnyDomain]:
        return {parameter.name: parameter.domain for parameter in parameters(self.spec)}

    @cached_property
    def _distributions(self) -> "dict[str, optuna.distributions.BaseDistribution]":
        return {name: distribution(domain) for name, domain in self._domains.items()}


@dataclass
class Memory:
    """Trials as Optuna has them, kept from one proposal to the next, so that only what changed is made again.

    It holds no fact: a trial of it is used only while the row and the terms that it was made from are the same.
    """

    terms: Terms | None = None
    records: list[TrialRecord] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    trials: "list[optuna.trial.FrozenTrial]" = field(default_factory=list)

    def told(
        self,
        spec: ExperimentSpec,
        trials: Sequence[TrialRecord],
        *,
        number: int,
        known: References,
        rejected: Sequence[Mapping[str, Scalar]],
    ) -> "list[optuna.trial.FrozenTrial]":
        """The trials as the sampler of `spec` is to learn from them (see `study.study_of`), numbered by their place.

        Args:
            trials: what trial `number` may know of, by number.
            known: what the objective's limits are relative to.
            rejected: points for this trial that may not be.
        """
        terms = _terms(spec, trials, known=known, rejects=bool(rejected))
        # A search has one spec, the same object; comparing whole ones would take longer than what this saves.
        if self.terms is None or self.terms.spec is not spec or self.terms != terms:
            self.terms, self.records, self.rows, self.trials = terms, [], [], []
        terms = self.terms
        generation: Mapping[int, int] = {}
        if isinstance(spec.sampler, NSGA2Sampler | NSGA3Sampler):
            generation = generations(spec, trials, number=number, size=spec.sampler.population_size).of_trial
        del self.records[len(trials) :], self.rows[len(trials) :], self.trials[len(trials) :]
        has_limits = bool(spec.objective.constraints)
        for index, trial in enumerate(trials):
            if index < len(self.records) and self.records[index] is trial:
                continue  # which generation it is of does not change either
            born = generation.get(trial.number)
            row = (
                trial.state,
                trial.cause,
                trial.objective,
                trial.further_values,
                trial.params,
                trial.rungs,
                trial.summary if has_limits else None,
                born,
            )
            self.records[index : index + 1] = [trial]
            if index == len(self.rows) or self.rows[index] != row:
                self.rows[index : index + 1] = [row]
                self.trials[index : index + 1] = [terms.told(trial, number=index, generation=born)]
        return [
            *self.trials,
            *(terms.rejected(point, number=len(trials) + index) for index, point in enumerate(rejected)),
        ]


def _terms(spec: ExperimentSpec, trials: Sequence[TrialRecord], *, known: References, rejects: bool) -> Terms:
    if not isinstance(spec.sampler, GPSampler):
        return Terms(spec, known, None, False)
    completed = [trial for trial in trials if trial.state is TrialState.COMPLETED]
    values = [found for trial in completed if (found := objective_values(trial, len(spec.further_objectives)))]
    worst = tuple(
        max(column) if direction == "minimize" else min(column)
        for column, direction in zip(zip(*values, strict=True), directions(spec), strict=False)
    )
    some_cannot_run = rejects or any(trial.cause in CANNOT_RUN for trial in trials)
    return Terms(spec, known, worst or None, some_cannot_run)
