"""What the search found, and going on with it."""

from fastapi import APIRouter

from api.answers import experiment_detail
from api.dependencies import DatabaseOf
from api.problems import ILLEGAL_TRANSITION, NOT_FOUND, SPEC_REJECTED, problems
from api.schemas.experiments import ExperimentDetail
from api.schemas.search import Analysis, AnalysisRead, ExtendRequest
from orchestrator.capacity import capacity_of
from orchestrator.extending import extended, is_extended_to
from orchestrator.spec import ExperimentSpec

router = APIRouter(tags=["search"])

_RETRY_AFTER_MS = 60_000
"""An analysis that failed is not tried again before."""


@router.get("/experiments/{experiment_id}/analysis", operation_id="get_analysis", responses=problems(NOT_FOUND))
def get_analysis(experiment_id: str, database: DatabaseOf) -> AnalysisRead:
    """Best so far, Pareto front, slices and importance of the parameters. Worked out elsewhere, and kept.

    Where it is not current, a newer one is worked out: ask again.
    """
    with database.read() as work:
        record = work.experiments.get(experiment_id)
        there = work.analyses.of_experiment(experiment_id)
        now_ms = work.clock()
    is_current = there is not None and there.sequence == record.sequence
    failed_lately = there is not None and there.problem is not None and now_ms - (there.at_ms or 0) < _RETRY_AFTER_MS
    if not is_current and not failed_lately and (there is None or there.wanted_ms is None):
        database.run(lambda work: work.analyses.want(experiment_id))
    document = None if there is None else there.document
    return AnalysisRead(
        experiment_id=experiment_id,
        state="current" if is_current else "pending" if document is None else "stale",
        sequence=None if there is None else there.sequence,
        at_ms=None if there is None else there.at_ms,
        problem=None if there is None else there.problem,
        analysis=None if document is None else Analysis.model_validate(document),
    )


@router.post(
    "/experiments/{experiment_id}:extend",
    status_code=202,
    operation_id="extend_experiment",
    responses=problems(NOT_FOUND, ILLEGAL_TRANSITION, SPEC_REJECTED),
)
def extend_experiment(experiment_id: str, request: ExtendRequest, database: DatabaseOf) -> ExperimentDetail:
    """Queue an ended experiment again with more trials, in the same space or a wider one.

    It keeps its trials, and the sampler learns from all of them. Asking again for what it was extended to changes
    nothing.
    """
    with database.read() as work:
        record = work.experiments.get(experiment_id)
        capacity = capacity_of(work.services.get("ray"))
    spec = ExperimentSpec.model_validate(record.spec)
    if record.spec_version == 0 or not is_extended_to(spec, num_trials=request.num_trials, space=request.space):
        admitted = extended(
            spec, document=record.document, num_trials=request.num_trials, space=request.space, capacity=capacity
        )
        database.run(
            lambda work: work.experiments.extend(
                experiment_id, admitted.spec, version=record.spec_version, document=admitted.document
            )
        )
    with database.read() as work:
        return experiment_detail(work, work.experiments.get(experiment_id))
