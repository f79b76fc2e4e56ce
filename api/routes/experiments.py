"""Experiments: submit, estimate, list, read, cancel, compare."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Request, Response

from api.dependencies import Cursor, DatabaseOf, Limit, SettingsOf
from api.problems import KEY_REUSED, NOT_FOUND, SPEC_REJECTED, problems
from api.schemas.comparison import Comparison
from api.schemas.experiments import ExperimentDetail, ExperimentPage, Validation
from api.schemas.trials import TrialPage
from api.schemas.wire import shown_as

router = APIRouter(tags=["experiments"])

Document = Annotated[Any, Body(json_schema_extra=shown_as("ExperimentSpecInput"))]
"""Taken as any JSON: admission answers for a spec's mistakes, with more to say than a type error."""
IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$"),
]


@router.post(
    "/experiments",
    status_code=201,
    operation_id="submit_experiment",
    responses=problems(SPEC_REJECTED, KEY_REUSED),
)
def submit_experiment(
    document: Document, database: DatabaseOf, settings: SettingsOf, response: Response, key: IdempotencyKey = None
) -> ExperimentDetail:
    """Queue an experiment. Repeating the call with the same key and body gives the first answer."""
    raise NotImplementedError


@router.post("/experiments:validate", operation_id="validate_experiment", responses=problems(SPEC_REJECTED))
def validate_experiment(document: Document, database: DatabaseOf, settings: SettingsOf) -> Validation:
    """What submitting the spec would mean: the normalised spec, sizes, costs, warnings. Nothing is stored."""
    raise NotImplementedError


@router.get("/experiments", operation_id="list_experiments")
def list_experiments(database: DatabaseOf, limit: Limit = 50, cursor: Cursor = None) -> ExperimentPage:
    """Experiments, newest first."""
    raise NotImplementedError


@router.get("/experiments/{experiment_id}", operation_id="get_experiment", responses=problems(NOT_FOUND))
def get_experiment(experiment_id: str, database: DatabaseOf) -> ExperimentDetail:
    """One experiment with its trial counts, the best trial so far and the time it still needs."""
    raise NotImplementedError


@router.get("/experiments/{experiment_id}/trials", operation_id="list_trials", responses=problems(NOT_FOUND))
def list_trials(experiment_id: str, database: DatabaseOf, limit: Limit = 200, cursor: Cursor = None) -> TrialPage:
    """Trials in order of their number; rows that arrive while paging come last."""
    raise NotImplementedError


@router.post(
    "/experiments/{experiment_id}:cancel",
    status_code=202,
    operation_id="cancel_experiment",
    responses=problems(NOT_FOUND),
)
def cancel_experiment(experiment_id: str, database: DatabaseOf) -> ExperimentDetail:
    """Ask for the end of an experiment: running trials write a checkpoint and stop. Asking again changes nothing."""
    raise NotImplementedError


@router.get("/experiments/{experiment_id}/comparison", operation_id="compare_trials", responses=problems(NOT_FOUND))
def compare_trials(experiment_id: str, database: DatabaseOf) -> Comparison:
    """The trials side by side, best first, with what the comparison does not show."""
    raise NotImplementedError
