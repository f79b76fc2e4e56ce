"""Experiments: submit, estimate, list, read, compare."""

import hashlib
import json
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response

from api.answers import experiment_detail, experiment_summaries, run_rows, trial_rows
from api.auth import Owner
from api.comparison import comparison
from api.dependencies import Cursor, DatabaseOf, Limit
from api.problems import KEY_REUSED, NOT_FOUND, SPEC_REJECTED, problems
from api.routes.body import SPEC_BODY, SpecDocument
from api.schemas.comparison import Comparison
from api.schemas.experiments import ExperimentDetail, ExperimentPage, Validation
from api.schemas.trials import RunList, TrialPage
from api.validation import validation
from orchestrator.admission import admit
from orchestrator.capacity import Capacity, capacity_of
from orchestrator.states import ExperimentState
from orchestrator.store.overview import recent_summaries
from orchestrator.store.session import Database

router = APIRouter(tags=["experiments"])

IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$"),
]


@router.post(
    "/experiments",
    status_code=201,
    operation_id="submit_experiment",
    responses={
        201: {"headers": {"Location": {"description": "The experiment", "schema": {"type": "string"}}}},
        **problems(SPEC_REJECTED, KEY_REUSED),
    },
    openapi_extra=SPEC_BODY,
)
def submit_experiment(
    document: SpecDocument, database: DatabaseOf, response: Response, owner: Owner, key: IdempotencyKey = None
) -> ExperimentDetail:
    """Queue an experiment. Repeating the call with the same key and body gives the first answer."""
    admitted = admit(document, capacity=capacity(database))
    submission = database.run(
        lambda work: work.experiments.submit(
            admitted.spec,
            document=admitted.document,
            warnings=admitted.warnings,
            key=key,
            fingerprint=fingerprint(document),
            owner=owner,
        )
    )
    response.headers["Location"] = f"/v1/experiments/{submission.experiment.id}"
    if submission.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return get_experiment(submission.experiment.id, database)


@router.post(
    "/experiments:validate",
    operation_id="validate_experiment",
    responses=problems(SPEC_REJECTED),
    openapi_extra=SPEC_BODY,
)
def validate_experiment(document: SpecDocument, database: DatabaseOf) -> Validation:
    """What submitting the spec would mean: the normalised spec, sizes, costs, warnings. Nothing is stored."""
    with database.read() as work:
        known = capacity_of(work.services.get("ray"))
        summaries = recent_summaries(work.connection)
    admitted = admit(document, capacity=known)
    with database.read() as work:
        warm = work.warm_starts.found(admitted.spec)
    return validation(admitted, known, summaries, warm)


@router.get("/experiments", operation_id="list_experiments")
def list_experiments(
    database: DatabaseOf, limit: Limit = 50, cursor: Cursor = None, state: ExperimentState | None = None
) -> ExperimentPage:
    """Experiments, newest first; only those in `state` if it is given."""
    with database.read() as work:
        page = work.experiments.list(limit=limit, cursor=cursor, state=state)
        return ExperimentPage(items=experiment_summaries(work, page.items), next_cursor=page.next_cursor)


@router.get("/experiments/{experiment_id}", operation_id="get_experiment", responses=problems(NOT_FOUND))
def get_experiment(experiment_id: str, database: DatabaseOf) -> ExperimentDetail:
    """One experiment with its trial counts, the best trial so far and the time it still needs."""
    with database.read() as work:
        return experiment_detail(work, work.experiments.get(experiment_id))


@router.get("/experiments/{experiment_id}/trials", operation_id="list_trials", responses=problems(NOT_FOUND))
def list_trials(experiment_id: str, database: DatabaseOf, limit: Limit = 200, cursor: Cursor = None) -> TrialPage:
    """Trials in order of their number; rows that arrive while paging come last."""
    with database.read() as work:
        work.experiments.get(experiment_id)
        page = work.trials.list(experiment_id, limit=limit, cursor=cursor)
        return TrialPage(items=trial_rows(work, page.items), next_cursor=page.next_cursor)


@router.get("/experiments/{experiment_id}/runs", operation_id="list_experiment_runs", responses=problems(NOT_FOUND))
def list_experiment_runs(experiment_id: str, database: DatabaseOf) -> RunList:
    """Every run of every trial, in order of trial and run."""
    with database.read() as work:
        work.experiments.get(experiment_id)
        return RunList(items=run_rows(work.runs.of_experiment(experiment_id)))


@router.get("/experiments/{experiment_id}/comparison", operation_id="compare_trials", responses=problems(NOT_FOUND))
def compare_trials(experiment_id: str, database: DatabaseOf) -> Comparison:
    """The trials side by side, best first, with what the comparison does not show."""
    with database.read() as work:
        return comparison(work, experiment_id)


def capacity(database: Database) -> Capacity | None:
    """What the cluster holds, as far as it is known."""
    with database.read() as work:
        return capacity_of(work.services.get("ray"))


def fingerprint(document: Any) -> str:
    """sha256 of a document in canonical JSON: equal for bodies that say the same."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
