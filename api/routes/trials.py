"""Trials and runs."""

from fastapi import APIRouter

from api.dependencies import DatabaseOf, SettingsOf
from api.problems import NOT_FOUND, problems
from api.schemas.trials import Diff, DiffRequest, RunList, RunRead, TrialDetail

router = APIRouter(tags=["trials"])


@router.get("/trials/{trial_id}", operation_id="get_trial", responses=problems(NOT_FOUND))
def get_trial(trial_id: str, database: DatabaseOf) -> TrialDetail:
    """One trial with its configuration and the decisions taken on it."""
    raise NotImplementedError


@router.get("/trials/{trial_id}/runs", operation_id="list_runs", responses=problems(NOT_FOUND))
def list_runs(trial_id: str, database: DatabaseOf) -> RunList:
    """All runs of a trial, first to last."""
    raise NotImplementedError


@router.get("/runs/{run_id}", operation_id="get_run", responses=problems(NOT_FOUND))
def get_run(run_id: str, database: DatabaseOf) -> RunRead:
    """One run."""
    raise NotImplementedError


@router.post("/trials:diff", operation_id="diff_trials", responses=problems(NOT_FOUND))
def diff_trials(request: DiffRequest, database: DatabaseOf) -> Diff:
    """Only the configuration values that differ between the trials."""
    raise NotImplementedError
