"""Trials and runs."""

from fastapi import APIRouter

from api.answers import run_rows, trial_detail
from api.dependencies import DatabaseOf
from api.diff import diff
from api.problems import NOT_FOUND, problems
from api.schemas.trials import Diff, DiffRequest, RunList, RunRead, TrialDetail

router = APIRouter(tags=["trials"])


@router.get("/trials/{trial_id}", operation_id="get_trial", responses=problems(NOT_FOUND))
def get_trial(trial_id: str, database: DatabaseOf) -> TrialDetail:
    """One trial with its configuration and the decisions taken on it."""
    with database.read() as work:
        return trial_detail(work, work.trials.get(trial_id))


@router.get("/trials/{trial_id}/runs", operation_id="list_runs", responses=problems(NOT_FOUND))
def list_runs(trial_id: str, database: DatabaseOf) -> RunList:
    """All runs of a trial, first to last."""
    with database.read() as work:
        work.trials.get(trial_id)
        return RunList(items=run_rows(work.runs.of_trial(trial_id)))


@router.get("/runs/{run_id}", operation_id="get_run", responses=problems(NOT_FOUND))
def get_run(run_id: str, database: DatabaseOf) -> RunRead:
    """One run."""
    with database.read() as work:
        return run_rows([work.runs.get(run_id)])[0]


@router.post("/trials:diff", operation_id="diff_trials", responses=problems(NOT_FOUND))
def diff_trials(request: DiffRequest, database: DatabaseOf) -> Diff:
    """Only the configuration values that differ between the trials."""
    with database.read() as work:
        configs = [work.trials.get(trial_id).config or {} for trial_id in request.trials]
    return diff(request.trials, configs)
