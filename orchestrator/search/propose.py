"""Which parameters to try next: a pure function of the spec, the trial's number and the rows before it.

Nothing is kept between proposals. For TPE an Optuna study is rebuilt in memory from the rows each time, so that a
proposal after a crash is the one that would have been made without it. This is the only module that imports optuna.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.errors import InfeasiblePoint
from orchestrator.search.draw import derived_seed, random_point
from orchestrator.search.grid import AnyDomain, grid_point, lattice_point, num_lattice_points, num_search_trials
from orchestrator.search.space import active, parameters, resolve
from orchestrator.spec import ChoiceDomain, ExperimentSpec, FloatDomain, GridSampler, IntDomain, Scalar, TPESampler
from orchestrator.states import Cause, TrialState
from orchestrator.store.records import Proposal, TrialKind, TrialRecord

if TYPE_CHECKING:
    import optuna

__all__ = ["Proposal", "num_search_trials", "propose", "study_of"]

_CANNOT_RUN = (Cause.DIVERGED, Cause.OUT_OF_MEMORY, Cause.INVALID_CONFIG, Cause.DOES_NOT_FIT)
"""Causes that belong to the point: there again, it would fail again."""


def propose(spec: ExperimentSpec, *, number: int, history: Sequence[TrialRecord]) -> Proposal | None:
    """The point of trial `number`, or None when the search has made all its trials.

    Args:
        number: the trial's number in the experiment; the baselines have the numbers before the search's.
        history: the trials before it, in any order; those with a higher number and the baselines play no part.

    Raises:
        ValueError: the experiment is synchronous and an earlier batch has not ended.
    """
    index = number - len(spec.baselines)
    if index >= num_search_trials(spec):
        return None
    if isinstance(spec.sampler, GridSampler):
        point = grid_point(spec, index)
    elif isinstance(spec.sampler, TPESampler):
        point = _ask(spec, spec.sampler, number, history)
    else:
        point = random_point(spec, number)
    try:
        return Proposal(params=point, config=resolve(spec, point))
    except InfeasiblePoint as error:
        return Proposal(params=point, config=None, problem=str(error))


def study_of(spec: ExperimentSpec, *, number: int, history: Sequence[TrialRecord]) -> "optuna.Study":
    """The Optuna study that trial `number` is asked from: the search trials before it, told as what they are.

    completed: COMPLETE with its objective. pruned: PRUNED with its values at the rungs (step: training tokens), never
    complete. Not able to run (infeasible, diverged, out of memory): PRUNED with a violated constraint, which TPE ranks
    below everything else. Still running: RUNNING. Ended for our reasons or the user's: FAIL, which samplers skip.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = spec.sampler if isinstance(spec.sampler, TPESampler) else TPESampler()
    space = parameters(spec)
    domains = {parameter.name: parameter.domain for parameter in space}
    distributions = {name: _distribution(domain) for name, domain in domains.items()}
    with warnings.catch_warnings():
        # `multivariate` and `group` are called experimental by every Optuna so far.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            direction=spec.objective.direction,
            sampler=optuna.samplers.TPESampler(
                seed=derived_seed(spec.seed, number),
                n_startup_trials=sampler.num_startup_trials,
                multivariate=sampler.multivariate,
                group=sampler.multivariate and any(parameter.condition for parameter in space),
                constant_liar=sampler.constant_liar,
            ),
        )
    for trial in _visible(spec, number, history):
        study.add_trial(_told(trial, domains, distributions))
    return study


def _visible(spec: ExperimentSpec, number: int, history: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The search trials that trial `number` may know of, by number.

    In a synchronous experiment those are the batches before its own as they ended, and of its own batch only what was
    proposed: how far it has come by now depends on the machine.
    """
    trials = sorted(
        (trial for trial in history if trial.kind is TrialKind.SEARCH and trial.number < number),
        key=lambda trial: trial.number,
    )
    if not spec.synchronous:
        return trials
    first_of_batch = number - (number - len(spec.baselines)) % spec.batch_size
    visible: list[TrialRecord] = []
    for trial in trials:
        if trial.number < first_of_batch and trial.finished_at_ms is None:
            raise ValueError(f"trial {number} opens a batch, but trial {trial.number} of an earlier one has not ended")
        if trial.number >= first_of_batch and trial.config is not None:
            trial = replace(trial, state=TrialState.RUNNING, cause=None, objective=None, rungs=(), finished_at_ms=None)
        visible.append(trial)
    return visible


def _ask(spec: ExperimentSpec, sampler: TPESampler, number: int, history: Sequence[TrialRecord]) -> dict[str, Scalar]:
    trial = study_of(spec, number=number, history=history).ask()
    point: dict[str, Scalar] = {}
    for parameter in parameters(spec):
        if active(parameter, point):
            point[parameter.name] = _from_optuna(parameter.domain, _suggest(trial, parameter.name, parameter.domain))
    return point


def _suggest(trial: "optuna.Trial", name: str, domain: AnyDomain) -> float:
    from optuna.distributions import FloatDistribution, IntDistribution

    form = _distribution(domain)
    if isinstance(form, IntDistribution):
        return trial.suggest_int(name, form.low, form.high, step=form.step, log=form.log)
    if isinstance(form, FloatDistribution):
        return trial.suggest_float(name, form.low, form.high, log=form.log)
    return trial.suggest_categorical(name, list(range(len(_choices(domain)))))


def _told(
    trial: TrialRecord,
    domains: dict[str, AnyDomain],
    distributions: "dict[str, optuna.distributions.BaseDistribution]",
) -> "optuna.trial.FrozenTrial":
    import optuna

    params = {name: _to_optuna(domains[name], value) for name, value in trial.params.items()}
    known = {name: distributions[name] for name in params}
    at_rungs = {record.tokens: record.value for record in trial.rungs if record.value is not None}
    states = optuna.trial.TrialState
    if trial.finished_at_ms is None:
        state, value, constraints = states.RUNNING, None, None
    elif trial.state is TrialState.COMPLETED and trial.objective is not None:
        state, value, constraints = states.COMPLETE, trial.objective, {"runs": 0.0}
    elif trial.state is TrialState.PRUNED:
        state, value, constraints = states.PRUNED, None, {"runs": 0.0}
    elif trial.cause in _CANNOT_RUN:
        state, value, constraints = states.PRUNED, None, {"runs": 1.0}
    else:
        state, value, constraints = states.FAIL, None, None
    return optuna.trial.create_trial(
        state=state,
        value=value,
        params=params,
        distributions=known,
        intermediate_values=at_rungs,
        constraints=constraints,
    )


def _distribution(domain: AnyDomain) -> "optuna.distributions.BaseDistribution":
    """Optuna's form of a domain. What is chosen becomes an index: 1, 1.0 and True would be one choice to it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, IntDomain):
        low, high = domain.int
        return IntDistribution(low, low + (high - low) // domain.step * domain.step, log=domain.log, step=domain.step)
    if isinstance(domain, FloatDomain):
        low, high = domain.float
        if domain.step is None:
            return FloatDistribution(low, high, log=domain.log)
        return IntDistribution(0, num_lattice_points(low, high, domain.step) - 1)
    return CategoricalDistribution(list(range(len(_choices(domain)))))


def _choices(domain: AnyDomain) -> tuple[Scalar, ...]:
    if isinstance(domain, ChoiceDomain):
        return domain.choice
    assert not isinstance(domain, IntDomain | FloatDomain)
    return tuple(sorted(domain.options))


def _to_optuna(domain: AnyDomain, value: Scalar) -> float | int:
    if isinstance(domain, FloatDomain) and domain.step is not None:
        assert isinstance(value, int | float)
        return round((value - domain.float[0]) / domain.step)
    if isinstance(domain, IntDomain | FloatDomain):
        assert isinstance(value, int | float)
        return value
    choices = _choices(domain)
    return next(index for index, choice in enumerate(choices) if choice == value and type(choice) is type(value))


def _from_optuna(domain: AnyDomain, suggested: float) -> Scalar:
    if isinstance(domain, FloatDomain) and domain.step is not None:
        low, high = domain.float
        return lattice_point(low, high, domain.step, int(suggested))
    if isinstance(domain, IntDomain):
        return int(suggested)
    if isinstance(domain, FloatDomain):
        return float(suggested)
    return _choices(domain)[int(suggested)]
