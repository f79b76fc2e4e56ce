"""Points that a user adds to an experiment while it runs, or after."""

from collections.abc import Mapping

from orchestrator.errors import InfeasiblePoint, SpecProblem, SpecRejected
from orchestrator.search.admission import given_point_problems
from orchestrator.search.constraints import parse_constraint
from orchestrator.search.draw import draw
from orchestrator.search.space import parameters, resolve, violation
from orchestrator.spec import ExperimentSpec, Scalar
from orchestrator.store.records import Proposal


def added_point(spec: ExperimentSpec, params: Mapping[str, Scalar], *, number: int) -> Proposal:
    """The point that `params` stand for; what they leave out is drawn at random.

    Args:
        params: parameter -> value.
        number: of the trial, which seeds the draw.

    Raises:
        SpecRejected: with pointers into `{"params": {...}}`.
    """
    constraints = [parse_constraint(text) for text in spec.constraints]
    problems = given_point_problems(spec, constraints, dict(params), ("params",))
    if problems:
        raise SpecRejected(problems)
    point = draw(parameters(spec), spec.seed, number, fixed=params)
    problem = violation(spec, constraints, point)
    if problem is None:
        try:
            return Proposal(params=point, config=resolve(spec, point))
        except InfeasiblePoint as error:
            problem = str(error)
    raise SpecRejected([SpecProblem(pointer="/params", code="infeasible", message=problem, given=str(point)[:200])])
