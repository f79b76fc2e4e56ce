"""The Optuna study that a proposal is asked from, rebuilt in memory from the rows each time.

This is the only module that imports optuna.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.samplers import GPSampler, NSGA2Sampler, TPESampler
from orchestrator.search.draw import derived_seed
from orchestrator.search.generations import generations
from orchestrator.search.grid import AnyDomain, lattice_point, num_lattice_points
from orchestrator.search.outcome import excesses
from orchestrator.search.space import active, parameters
from orchestrator.search.visible import visible, without_added
from orchestrator.spec import ChoiceDomain, ExperimentSpec, FloatDomain, IntDomain, Scalar
from orchestrator.states import Cause, TrialState
from orchestrator.store.records import TrialRecord

if TYPE_CHECKING:
    import optuna

_CANNOT_RUN = (Cause.DIVERGED, Cause.OUT_OF_MEMORY, Cause.INVALID_CONFIG, Cause.DOES_NOT_FIT)
"""Causes that belong to the point: there again, it would fail again."""
_RUNS = "runs"
"""The constraint that a point which cannot run violates."""
_GENERATION = "NSGAIISampler:generation"
"""Where Optuna's sampler notes a trial's generation."""


def ask(
    spec: ExperimentSpec,
    *,
    number: int,
    history: Sequence[TrialRecord],
    rejected: Sequence[Mapping[str, Scalar]] = (),
) -> dict[str, Scalar]:
    """The point that Optuna's sampler suggests for trial `number`.

    Args:
        rejected: what it suggested for this trial before and may not be, told as points that cannot run.
    """
    import optuna

    study = study_of(spec, number=number, history=history, rejected=rejected)
    point: dict[str, Scalar] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        trial = study.ask()
        for parameter in parameters(spec):
            if active(parameter, point):
                suggested = _suggest(trial, parameter.name, parameter.domain)
                point[parameter.name] = _from_optuna(parameter.domain, suggested)
    return point


def study_of(
    spec: ExperimentSpec,
    *,
    number: int,
    history: Sequence[TrialRecord],
    rejected: Sequence[Mapping[str, Scalar]] = (),
) -> "optuna.Study":
    """The study that trial `number` is asked from: the search trials before it, told as what they are.

    completed: COMPLETE with its objective. pruned: PRUNED with its values at the rungs (step: training tokens), never
    complete. Not able to run (infeasible, diverged, out of memory): PRUNED with a violated constraint, which TPE ranks
    below everything else. Still running: RUNNING. Ended for our reasons or the user's: FAIL, which samplers skip.

    The limits of the objective are told as constraints too, by how much a trial is beyond them.

    A Gaussian process learns of completed trials only, and would ask for a point that cannot run again and again. It is
    told of one as COMPLETE with the worst objective so far and the violated constraint, as soon as there is one.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    domains = {parameter.name: parameter.domain for parameter in parameters(spec)}
    distributions = {name: _distribution(domain) for name, domain in domains.items()}
    number, history = without_added(number, history)
    trials = visible(spec, number, history)
    with warnings.catch_warnings():
        # `multivariate` and `group` are called experimental by every Optuna so far.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            direction=spec.objective.direction,
            sampler=_sampler(spec, derived_seed(spec.seed, number, *([len(rejected)] if rejected else []))),
        )
    worst = _worst(spec, trials)
    cannot_run = any(trial.cause in _CANNOT_RUN for trial in trials) or bool(rejected)
    generation: dict[int, int] = {}
    if isinstance(spec.sampler, NSGA2Sampler):
        size = spec.sampler.population_size
        generation = generations(spec, trials, number=number, size=size).of_trial
    for trial in trials:
        state, value, constraints = _outcome(spec, trial)
        if isinstance(spec.sampler, GPSampler):
            if constraints is not None and constraints[_RUNS] > 0 and worst is not None:
                state, value = optuna.trial.TrialState.COMPLETE, worst
            elif not cannot_run and constraints is not None:
                # Each constraint is a Gaussian process of its own: none for what always holds.
                constraints = {name: excess for name, excess in constraints.items() if name != _RUNS} or None
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=value,
                params={name: _to_optuna(domains[name], value) for name, value in trial.params.items()},
                distributions={name: distributions[name] for name in trial.params},
                intermediate_values={record.tokens: record.value for record in trial.rungs if record.value is not None},
                constraints=constraints,
                system_attrs={_GENERATION: generation[trial.number]} if generation else None,
            )
        )
    limits = [] if not trials else list(excesses(spec.objective, trials[0]))
    for point in rejected:
        as_complete = isinstance(spec.sampler, GPSampler) and worst is not None
        states = optuna.trial.TrialState
        study.add_trial(
            optuna.trial.create_trial(
                state=states.COMPLETE if as_complete else states.PRUNED,
                value=worst if as_complete else None,
                params={name: _to_optuna(domains[name], value) for name, value in point.items()},
                distributions={name: distributions[name] for name in point},
                constraints={_RUNS: 1.0} | dict.fromkeys(limits, 0.0),
            )
        )
    return study


def _sampler(spec: ExperimentSpec, seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    config = spec.sampler
    if isinstance(config, GPSampler):
        return optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=config.num_startup_trials, warn_independent_sampling=False
        )
    if isinstance(config, NSGA2Sampler):
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=config.population_size)
    config = config if isinstance(config, TPESampler) else TPESampler()
    return optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=config.num_startup_trials,
        multivariate=config.multivariate,
        group=config.multivariate and any(parameter.condition for parameter in parameters(spec)),
        constant_liar=config.constant_liar,
    )


def _worst(spec: ExperimentSpec, trials: Sequence[TrialRecord]) -> float | None:
    """The worst objective of a completed trial, None if none has completed."""
    values = [
        trial.objective for trial in trials if trial.state is TrialState.COMPLETED and trial.objective is not None
    ]
    if not values:
        return None
    return max(values) if spec.objective.direction == "minimize" else min(values)


def _outcome(
    spec: ExperimentSpec, trial: TrialRecord
) -> "tuple[optuna.trial.TrialState, float | None, dict[str, float] | None]":
    """State, objective and constraints that a trial is told with."""
    import optuna

    states = optuna.trial.TrialState
    limits = excesses(spec.objective, trial)
    if trial.finished_at_ms is None:
        return states.RUNNING, None, None
    if trial.state is TrialState.COMPLETED and trial.objective is not None:
        return states.COMPLETE, trial.objective, {_RUNS: 0.0} | limits
    if trial.state is TrialState.PRUNED and trial.cause is not Cause.USER:
        return states.PRUNED, None, {_RUNS: 0.0} | limits
    if trial.cause in _CANNOT_RUN:
        return states.PRUNED, None, {_RUNS: 1.0} | limits
    return states.FAIL, None, None


def _suggest(trial: "optuna.Trial", name: str, domain: AnyDomain) -> float:
    from optuna.distributions import FloatDistribution, IntDistribution

    form = _distribution(domain)
    if isinstance(form, IntDistribution):
        return trial.suggest_int(name, form.low, form.high, step=form.step, log=form.log)
    if isinstance(form, FloatDistribution):
        return trial.suggest_float(name, form.low, form.high, log=form.log)
    return trial.suggest_categorical(name, list(range(len(_choices(domain)))))


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
