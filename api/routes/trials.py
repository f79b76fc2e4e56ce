"""Trials and runs."""

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter

from api.answers import run_rows, trial_detail
from api.dependencies import DatabaseOf
from api.problems import NOT_FOUND, problems
from api.schemas.trials import Diff, Difference, DiffRequest, RunList, RunRead, TrialDetail

router = APIRouter(tags=["trials"])

_ABSENT = object()


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


def diff(trials: list[str], configs: list[dict[str, Any]]) -> Diff:
    """Compares configurations leaf by leaf; a leaf is whatever is no object and no list of objects."""
    leaves = [dict(_leaves(config, "")) for config in configs]
    paths = list(dict.fromkeys(path for one in leaves for path in one))
    differences: list[Difference] = []
    for path in paths:
        values = [one.get(path, _ABSENT) for one in leaves]
        if any(value != values[0] or type(value) is not type(values[0]) for value in values):
            present = [value is not _ABSENT for value in values]
            shown = [value if there else None for value, there in zip(values, present, strict=True)]
            differences.append(Difference(path=path, values=shown, present=present))
    return Diff(trials=trials, differences=differences, num_equal=len(paths) - len(differences))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{index}")
    else:
        yield path, value
