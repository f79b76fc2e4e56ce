"""Checkpoints that are kept, and forks: experiments that go on from one."""

from fastapi import APIRouter, Response

from api.answers import checkpoint_rows, experiment_detail, fork_read
from api.auth import Owner
from api.dependencies import DatabaseOf
from api.problems import KEY_REUSED, NOT_FOUND, SPEC_REJECTED, problems
from api.routes.experiments import IdempotencyKey, fingerprint
from api.schemas.experiments import ExperimentDetail
from api.schemas.trials import CheckpointList, ForkList, ForkRequest
from api.telemetry import config_of
from orchestrator.capacity import capacity_of
from orchestrator.forking import plan_fork, submit_fork
from trainer.config.fork import forkable_paths

router = APIRouter(tags=["forks"])


@router.get("/trials/{trial_id}/checkpoints", operation_id="list_checkpoints", responses=problems(NOT_FOUND))
def list_checkpoints(trial_id: str, database: DatabaseOf) -> CheckpointList:
    """The checkpoints of a trial that are kept: what it can be forked from, and which values a fork may change."""
    with database.read() as work:
        config = config_of(work.trials.get(trial_id))
        return CheckpointList(
            items=checkpoint_rows(work, trial_id), forkable=[] if config is None else forkable_paths(config)
        )


@router.get("/trials/{trial_id}/forks", operation_id="list_forks", responses=problems(NOT_FOUND))
def list_forks(trial_id: str, database: DatabaseOf) -> ForkList:
    """The experiments forked from a trial, oldest first."""
    with database.read() as work:
        work.trials.get(trial_id)
        return ForkList(items=[fork_read(work, record) for record in work.forks.of_trial(trial_id)])


@router.post(
    "/runs/{run_id}:fork",
    status_code=201,
    operation_id="fork_run",
    responses={
        201: {"headers": {"Location": {"description": "The experiment", "schema": {"type": "string"}}}},
        **problems(NOT_FOUND, SPEC_REJECTED, KEY_REUSED),
    },
)
def fork_run(
    run_id: str,
    request: ForkRequest,
    database: DatabaseOf,
    response: Response,
    owner: Owner,
    key: IdempotencyKey = None,
) -> ExperimentDetail:
    """Queue an experiment of one trial that goes on from a checkpoint of the run, with some values changed.

    Weights, optimizer states and the place in the data are the checkpoint's. Repeating the call with the same key and
    body gives the first answer.
    """
    with database.read() as work:
        planned = plan_fork(
            work,
            run_id,
            step=request.step,
            changes=request.set,
            name=request.name,
            capacity=capacity_of(work.services.get("ray")),
        )
    mark = fingerprint({"run": run_id, **request.model_dump(mode="json")})
    submission = database.run(lambda work: submit_fork(work, planned, key=key, fingerprint=mark, owner=owner))
    response.headers["Location"] = f"/v1/experiments/{submission.experiment.id}"
    if submission.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    with database.read() as work:
        return experiment_detail(work, work.experiments.get(submission.experiment.id))
