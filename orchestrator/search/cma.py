"""CMA-ES over the rows: the distribution is moved through all generations again for every proposal.

Source: Hansen 2016, arXiv:1604.00772. Numeric parameters that every point has are scaled to [0, 1] (`place_of`); the
distribution starts in the middle with a standard deviation of 1/6, Optuna's choice. A trial that did not complete
belongs to no generation: its place is drawn again, the usual treatment of what cannot be evaluated. With a warm start
the distribution starts as Nomura et al. 2021 (arXiv:2012.06932) fit it to the other experiments' best trials.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.samplers import CMAESSampler
from orchestrator.search.draw import derived_seed, draw, place_of, value_at
from orchestrator.search.generations import generations, is_evaluated
from orchestrator.search.outcome import NO_REFERENCES, References, excesses, references
from orchestrator.search.space import Parameter, parameters
from orchestrator.search.visible import visible
from orchestrator.spec import ExperimentSpec, FloatDomain, IntDomain, Scalar
from orchestrator.store.records import TrialRecord

if TYPE_CHECKING:
    import numpy as np

_MIN_WARM_TRIALS = 5
"""Of a warm start; fewer say too little of a distribution."""


def adapted(spec: ExperimentSpec) -> tuple[Parameter, ...]:
    """The parameters that CMA-ES adapts: numbers, more than one, that every point has."""
    return tuple(
        parameter
        for parameter in parameters(spec)
        if parameter.condition is None
        and (
            (isinstance(parameter.domain, IntDomain) and parameter.domain.int[0] < parameter.domain.int[1])
            or (isinstance(parameter.domain, FloatDomain) and parameter.domain.float[0] < parameter.domain.float[1])
        )
    )


def population_size(spec: ExperimentSpec, sampler: CMAESSampler) -> int:
    """Trials of a generation: as given, or 4 + floor(3 ln d) (equation 48)."""
    if sampler.population_size is not None:
        return sampler.population_size
    return 4 + math.floor(3 * math.log(len(adapted(spec))))


def cma_point(
    spec: ExperimentSpec, sampler: CMAESSampler, *, number: int, history: Sequence[TrialRecord], attempt: int = 0
) -> dict[str, Scalar]:
    """The point of trial `number`. What CMA-ES does not adapt is drawn at random.

    Args:
        history: as for `propose`.
        attempt: how many points for this trial were rejected.
    """
    import numpy as np
    from cmaes import CMA

    space = adapted(spec)
    size = population_size(spec, sampler)
    known = references(spec.objective, (trial for trial in history if trial.number < number))
    trials = visible(spec, number, history)
    mean, sigma, covariance = _start(spec, space, [trial for trial in trials if trial.number < 0], known)
    optimizer = CMA(
        mean=mean,
        sigma=sigma,
        cov=covariance,
        bounds=np.tile([0.0, 1.0], (len(space), 1)),
        n_max_resampling=10 * len(space),
        seed=derived_seed(spec.seed, number, "cmaes", attempt),
        population_size=size,
    )
    own = [trial for trial in trials if trial.number >= 0]
    past = generations(spec, own, number=number, size=size)
    for members in past.members:
        # The algorithm knows values by their order only.
        ordered = sorted(members, key=lambda trial: _cost(spec, trial, known))
        optimizer.tell([(np.array(_places(space, trial)), float(rank)) for rank, trial in enumerate(ordered)])
    # Telling uses no randomness, so what is asked depends on the seed above and on the distribution only.
    places = optimizer.ask()
    fixed = {
        parameter.name: value_at(parameter.domain, min(max(float(place), 0.0), 1 - 2**-53))
        for parameter, place in zip(space, places, strict=True)
    }
    return draw(parameters(spec), spec.seed, number, attempt=attempt, fixed=fixed)


def _start(
    spec: ExperimentSpec, space: Sequence[Parameter], warm: Sequence[TrialRecord], known: References
) -> "tuple[np.ndarray, float, np.ndarray | None]":
    """Mean, standard deviation and covariance that the distribution starts with."""
    import numpy as np
    from cmaes import get_warm_start_mgd

    solutions = sorted(
        (trial for trial in warm if is_evaluated(spec, trial)), key=lambda trial: _cost(spec, trial, known)
    )
    if len(solutions) < _MIN_WARM_TRIALS:
        return np.full(len(space), 0.5), 1 / 6, None
    ranked = [(np.array(_places(space, trial)), float(rank)) for rank, trial in enumerate(solutions)]
    # gamma: the best tenth; at least two, since one point has no spread.
    return get_warm_start_mgd(ranked, gamma=max(0.1, 2 / len(ranked)), alpha=0.1)


def _cost(spec: ExperimentSpec, trial: TrialRecord, known: References = NO_REFERENCES) -> tuple[float, float]:
    """Trials beyond a limit of the objective come behind the others, by how far beyond: Deb 2000's feasibility rule."""
    sign = 1 if spec.objective.direction == "minimize" else -1
    excess = sum(max(0.0, excess) for excess in excesses(spec.objective, trial, known).values())
    return excess, sign * (trial.objective or 0.0)


def _places(space: Sequence[Parameter], trial: TrialRecord) -> list[float]:
    places: list[float] = []
    for parameter in space:
        value = trial.params[parameter.name]
        assert isinstance(parameter.domain, IntDomain | FloatDomain)
        assert isinstance(value, int | float)
        places.append(place_of(parameter.domain, value))
    return places
