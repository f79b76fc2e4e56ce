"""Which parameters to try next: a pure function of the spec, the trial's number and the rows before it.

Nothing is kept between proposals, so that a proposal after a crash is the one that would have been made without it.
"""

from collections.abc import Iterator, Sequence

from orchestrator.errors import InfeasiblePoint
from orchestrator.samplers import (
    BruteForceSampler,
    CMAESSampler,
    GPSampler,
    GridSampler,
    NSGA2Sampler,
    NSGA3Sampler,
    QMCSampler,
    TPESampler,
)
from orchestrator.search.cma import adapted, cma_point
from orchestrator.search.constraints import Constraint, parse_constraint
from orchestrator.search.draw import draw
from orchestrator.search.grid import grid_point, grid_size, num_search_trials
from orchestrator.search.quasi import qmc_points
from orchestrator.search.shuffle import shuffled
from orchestrator.search.space import parameters, resolve, violation
from orchestrator.search.study import ask, study_of
from orchestrator.search.told import Memory
from orchestrator.search.visible import without_added
from orchestrator.spec import ExperimentSpec, Scalar
from orchestrator.store.records import Proposal, TrialRecord

__all__ = ["Proposal", "num_search_trials", "propose", "study_of"]

_NUM_ASKS = 8
"""How often a sampler with a model is asked for one trial before its point is drawn at random."""
_NUM_DRAWS = 500
"""How often a point is drawn that satisfies no constraint, before it is recorded as infeasible."""


def propose(
    spec: ExperimentSpec, *, number: int, history: Sequence[TrialRecord], memory: Memory | None = None
) -> Proposal | None:
    """The point of trial `number`, or None when the search has made all its trials.

    A point that violates a constraint of the spec is drawn again, and so on: the first that satisfies them all is
    proposed. The grid has no other point for its place, so there, and where nothing is found, the violating point is
    proposed as infeasible.

    Args:
        number: the trial's number in the experiment; the baselines have the numbers before the search's.
        history: the trials before it, in any order; those with a higher number, the baselines and what was added by
            hand play no part. Trials of a warm start are among them with negative numbers (`past.past_of`).
        memory: of earlier proposals of the same search, to be faster; what is proposed does not depend on it.

    Raises:
        ValueError: the experiment is synchronous and an earlier batch has not ended.
    """
    number, history = without_added(number, history)
    index = number - len(spec.baselines)
    if index >= num_search_trials(spec):
        return None
    constraints = [parse_constraint(text) for text in spec.constraints]
    point: dict[str, Scalar] = {}
    problem: str | None = None
    for point in _candidates(spec, constraints, number, history, memory):
        problem = violation(spec, constraints, point)
        if problem is None:
            break
    if problem is not None:
        return Proposal(params=point, config=None, problem=problem)
    try:
        return Proposal(params=point, config=resolve(spec, point))
    except InfeasiblePoint as error:
        return Proposal(params=point, config=None, problem=str(error))


def _candidates(
    spec: ExperimentSpec,
    constraints: Sequence[Constraint],
    number: int,
    history: Sequence[TrialRecord],
    memory: Memory | None,
) -> Iterator[dict[str, Scalar]]:
    """Points for one trial, in the order in which they are to be tried; at least one, and not without end."""
    index = number - len(spec.baselines) - len(spec.enqueue)
    sampler = spec.sampler
    fixed: dict[str, Scalar] = {}
    if index < 0:
        fixed = spec.enqueue[index]
    elif isinstance(sampler, GridSampler):
        yield grid_point(spec, index)
        return
    elif isinstance(sampler, BruteForceSampler):
        yield grid_point(spec, shuffled(index, grid_size(spec), spec.seed))
        return
    elif isinstance(sampler, QMCSampler):
        yield from _qmc_candidates(spec, sampler, constraints, index)
        return
    elif isinstance(sampler, CMAESSampler) and adapted(spec):
        for attempt in range(_NUM_ASKS):
            yield cma_point(spec, sampler, number=number, history=history, attempt=attempt)
    elif isinstance(sampler, TPESampler | GPSampler | NSGA2Sampler | NSGA3Sampler):
        rejected: list[dict[str, Scalar]] = []
        for _ in range(_NUM_ASKS):
            point = ask(spec, number=number, history=history, rejected=rejected, memory=memory)
            yield point
            rejected.append(point)
    space = parameters(spec)
    for attempt in range(_NUM_DRAWS):
        yield draw(space, spec.seed, number, attempt=attempt, fixed=fixed)


def _qmc_candidates(
    spec: ExperimentSpec, sampler: QMCSampler, constraints: Sequence[Constraint], index: int
) -> Iterator[dict[str, Scalar]]:
    """The sequence without what violates a constraint is what is numbered, so that no point comes twice."""
    if not constraints:
        yield next(qmc_points(spec, sampler, index))
        return
    points = qmc_points(spec, sampler, 0)
    num_before = num_violating = 0
    for point in points:
        if violation(spec, constraints, point) is not None:
            num_violating += 1
            if num_violating > _NUM_DRAWS + 100 * index:
                yield point
                return
        elif num_before == index:
            yield point
            return
        else:
            num_before += 1
