"""The Optuna study that a proposal is asked from, made in memory from the rows each time.

Optuna is imported in `orchestrator.search` alone: by this module, `told`, `tpe`, `distributions`, `row_storage`,
`importance` and `export`.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.samplers import GPSampler, NSGA2Sampler, NSGA3Sampler, TPESampler
from orchestrator.search.distributions import distribution, suggest
from orchestrator.search.draw import derived_seed
from orchestrator.search.outcome import directions, references
from orchestrator.search.space import active, parameters
from orchestrator.search.told import Memory
from orchestrator.search.visible import visible, without_added
from orchestrator.spec import ExperimentSpec, Scalar
from orchestrator.store.records import TrialRecord

if TYPE_CHECKING:
    import optuna


def ask(
    spec: ExperimentSpec,
    *,
    number: int,
    history: Sequence[TrialRecord],
    rejected: Sequence[Mapping[str, Scalar]] = (),
    memory: Memory | None = None,
) -> dict[str, Scalar]:
    """The point that Optuna's sampler suggests for trial `number`.

    Args:
        rejected: what it suggested for this trial before and may not be, told as points that cannot run.
        memory: of earlier proposals, to be faster; the point does not depend on it.
    """
    import optuna

    study = study_of(spec, number=number, history=history, rejected=rejected, memory=memory)
    point: dict[str, Scalar] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        trial = study.ask()
        for parameter in parameters(spec):
            if active(parameter, point):
                point[parameter.name] = suggest(trial, parameter.name, parameter.domain)
    return point


def study_of(
    spec: ExperimentSpec,
    *,
    number: int,
    history: Sequence[TrialRecord],
    rejected: Sequence[Mapping[str, Scalar]] = (),
    memory: Memory | None = None,
) -> "optuna.Study":
    """The study that trial `number` is asked from: the search trials before it, told as what they are.

    completed: COMPLETE with its values, one per objective. pruned: PRUNED with its values at the rungs (step: training
    tokens; none with several objectives, which Optuna cannot order by them), never complete. Not able to run
    (infeasible, diverged, out of memory): PRUNED with a violated constraint, which TPE ranks below everything else.
    Still running: RUNNING. Ended for our reasons or the user's, or without a value for every objective: FAIL, which
    samplers skip.

    The limits of the objective are told as constraints too, by how much a trial is beyond them.

    A Gaussian process learns of completed trials only, and would ask for a point that cannot run again and again. It is
    told of one as COMPLETE with the worst objective so far and the violated constraint, as soon as there is one.
    """
    import optuna

    from orchestrator.search.row_storage import RowStorage

    if optuna.logging.get_verbosity() != optuna.logging.WARNING:  # setting it empties the caches of all loggers
        optuna.logging.set_verbosity(optuna.logging.WARNING)
    number, history = without_added(number, history)
    known = references(spec.objective, (trial for trial in history if trial.number < number))
    told = (memory or Memory()).told(
        spec, visible(spec, number, history), number=number, known=known, rejected=rejected
    )
    with warnings.catch_warnings():
        # `multivariate` and `group` are called experimental by every Optuna so far, and so is NSGA-III.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            directions=directions(spec),
            storage=RowStorage(told),
            sampler=_sampler(spec, derived_seed(spec.seed, number, *([len(rejected)] if rejected else []))),
        )
        if isinstance(spec.sampler, NSGA3Sampler):
            elders = _sampler(spec, derived_seed(spec.seed, "parents"))
            _choose_parents(study, elders, population_size=spec.sampler.population_size)
    return study


def _choose_parents(study: "optuna.Study", sampler: "optuna.samplers.BaseSampler", *, population_size: int) -> None:
    """Has every generation's parents chosen with random numbers that are the same for all its children.

    NSGA-III breaks ties by chance. Chosen for each child anew, the parents of one generation would differ.
    """
    import optuna

    assert isinstance(sampler, optuna.samplers.NSGAIIISampler)
    key = sampler._get_generation_key()
    newest = max((trial.system_attrs.get(key, 0) for trial in study.get_trials(deepcopy=False)), default=0)
    for generation in range(1, newest + 2):
        members = sampler.get_population(study, generation - 1)
        if len(members) >= population_size:
            sampler.get_parent_population(study, generation)


def _sampler(spec: ExperimentSpec, seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    config = spec.sampler
    if isinstance(config, GPSampler):
        return optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=config.num_startup_trials, warn_independent_sampling=False
        )
    if isinstance(config, NSGA2Sampler):
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=config.population_size)
    if isinstance(config, NSGA3Sampler):
        return optuna.samplers.NSGAIIISampler(
            seed=seed, population_size=config.population_size, dividing_parameter=config.num_divisions
        )
    config = config if isinstance(config, TPESampler) else TPESampler()
    space = parameters(spec)
    options = {"seed": seed, "n_startup_trials": config.num_startup_trials, "constant_liar": config.constant_liar}
    if not config.multivariate:
        return optuna.samplers.TPESampler(multivariate=False, **options)
    if any(parameter.condition for parameter in space):
        return optuna.samplers.TPESampler(multivariate=True, group=True, **options)
    from orchestrator.search.tpe import KnownSpaceTPESampler

    return KnownSpaceTPESampler({parameter.name: distribution(parameter.domain) for parameter in space}, **options)
