"""Pausing, resuming, cancelling, killing, priorities; stopping, trying again and adding trials; who waits for what.

Every verb may be repeated: the same call again gives the same answer and does nothing more. The bulk forms carry each
out in a transaction of its own, and answer for each.
"""

from collections.abc import Callable, Iterator, Sequence

from fastapi import APIRouter, Request, Response

from api.answers import experiment_detail, trial_detail
from api.dependencies import DatabaseOf
from api.problems import ILLEGAL_TRANSITION, KEY_REUSED, NOT_FOUND, SPEC_REJECTED, problem_of, problems
from api.routes.experiments import IdempotencyKey, fingerprint
from api.schemas.control import (
    AddRequest,
    Amounts,
    BulkAnswer,
    BulkAnswers,
    CommandList,
    CommandRead,
    ExperimentFilter,
    ManyExperiments,
    ManyTrials,
    PrioritizeMany,
    PriorityRequest,
    QueueEntry,
    QueueRead,
    StopMany,
    StopManyTrials,
    StopRequest,
    TrialFilter,
)
from api.schemas.experiments import ExperimentDetail
from api.schemas.trials import TrialDetail
from orchestrator.adding import added_point
from orchestrator.allocation import KINDS, Claimant
from orchestrator.errors import EvenloadError, StoreUnavailable
from orchestrator.spec import ExperimentSpec
from orchestrator.states import TrialState, is_terminal
from orchestrator.store.control import PAUSE_WITHIN_S, STOP_WITHIN_S
from orchestrator.store.experiments import CANCEL_WITHIN_S
from orchestrator.store.queue import Standings
from orchestrator.store.records import ExperimentRecord, TrialRecord
from orchestrator.store.session import Database
from orchestrator.store.work import Work

router = APIRouter(tags=["control"])

_REFUSED = problems(NOT_FOUND, ILLEGAL_TRANSITION)


# One experiment


@router.post("/experiments/{experiment_id}:pause", status_code=202, operation_id="pause_experiment", responses=_REFUSED)
def pause_experiment(experiment_id: str, database: DatabaseOf, request: StopRequest | None = None) -> ExperimentDetail:
    """Stop for now: running trials write a checkpoint and give their places back; nothing is lost."""
    within_s = _within_s(request, PAUSE_WITHIN_S)
    return _changed(database, lambda work: work.control.pause(experiment_id, within_s=within_s))


@router.post(
    "/experiments/{experiment_id}:resume", status_code=202, operation_id="resume_experiment", responses=_REFUSED
)
def resume_experiment(experiment_id: str, database: DatabaseOf) -> ExperimentDetail:
    """Go on with a paused experiment; its trials go on from their checkpoints, bit for bit."""
    return _changed(database, lambda work: work.control.resume(experiment_id))


@router.post(
    "/experiments/{experiment_id}:cancel", status_code=202, operation_id="cancel_experiment", responses=_REFUSED
)
def cancel_experiment(experiment_id: str, database: DatabaseOf, request: StopRequest | None = None) -> ExperimentDetail:
    """End an experiment: running trials write a checkpoint and stop, and are killed after the deadline."""
    within_s = _within_s(request, CANCEL_WITHIN_S)
    return _changed(database, lambda work: work.experiments.request_cancel(experiment_id, within_s=within_s))


@router.post("/experiments/{experiment_id}:kill", status_code=202, operation_id="kill_experiment", responses=_REFUSED)
def kill_experiment(experiment_id: str, database: DatabaseOf) -> ExperimentDetail:
    """End an experiment now, without checkpoints; also one that is being cancelled."""
    return _changed(database, lambda work: work.experiments.request_cancel(experiment_id, within_s=0.0))


@router.post(
    "/experiments/{experiment_id}:prioritize", status_code=202, operation_id="prioritize_experiment", responses=_REFUSED
)
def prioritize_experiment(experiment_id: str, request: PriorityRequest, database: DatabaseOf) -> ExperimentDetail:
    """Change the priority; free places go by it from now on. Nothing that runs is interrupted."""
    return _changed(database, lambda work: work.control.prioritize(experiment_id, request.priority))


@router.get("/experiments/{experiment_id}/commands", operation_id="list_commands", responses=problems(NOT_FOUND))
def list_commands(experiment_id: str, database: DatabaseOf) -> CommandList:
    """What users wished for an experiment and its trials, and what became of it; oldest first."""
    with database.read() as work:
        work.experiments.get(experiment_id)
        records = work.commands.of_experiment(experiment_id)
    return CommandList(items=[CommandRead.model_validate(vars(record)) for record in records])


@router.post(
    "/experiments/{experiment_id}/trials",
    status_code=201,
    operation_id="add_trial",
    responses={
        201: {"headers": {"Location": {"description": "The trial", "schema": {"type": "string"}}}},
        **problems(NOT_FOUND, ILLEGAL_TRANSITION, SPEC_REJECTED, KEY_REUSED),
    },
)
def add_trial(
    experiment_id: str, request: AddRequest, database: DatabaseOf, response: Response, key: IdempotencyKey = None
) -> TrialDetail:
    """Add a point by hand. It is run to its end and compared; the search goes on as if it were not there.

    Repeating the call with the same key and body gives the first answer. An experiment that has ended is queued again.
    """
    mark = fingerprint({"experiment": experiment_id, **request.model_dump(mode="json")})

    def change(work: Work) -> TrialRecord:
        work.experiments.lock(experiment_id)
        spec = ExperimentSpec.model_validate(work.experiments.get(experiment_id).spec)
        proposal = added_point(spec, request.params, number=len(work.trials.history(experiment_id)))
        return work.control.add_trial(experiment_id, proposal, label=request.label, key=key, fingerprint=mark)

    trial = database.run(change)
    response.headers["Location"] = f"/v1/trials/{trial.id}"
    return _shown(database, trial.id)


# One trial


@router.post("/trials/{trial_id}:stop", status_code=202, operation_id="stop_trial", responses=_REFUSED)
def stop_trial(trial_id: str, database: DatabaseOf, request: StopRequest | None = None) -> TrialDetail:
    """End one trial: it is pruned with what it came to, or cancelled if it had not begun; the experiment goes on.

    It writes a checkpoint first, and is killed after the deadline.
    """
    within_s = _within_s(request, STOP_WITHIN_S)
    database.run(lambda work: work.control.stop_trial(trial_id, within_s=within_s))
    return _shown(database, trial_id)


@router.post("/trials/{trial_id}:retry", status_code=202, operation_id="retry_trial", responses=_REFUSED)
def retry_trial(trial_id: str, database: DatabaseOf) -> TrialDetail:
    """Try a failed trial again, as a new trial with its configuration, which is returned; the failed one stays.

    An experiment that has ended is queued again.
    """
    return _shown(database, database.run(lambda work: work.control.retry_trial(trial_id)).id)


# Many


@router.post("/experiments:pause", operation_id="pause_experiments")
def pause_experiments(question: StopMany, request: Request, database: DatabaseOf) -> BulkAnswers:
    """Pause each of them."""
    within_s = question.deadline_s or PAUSE_WITHIN_S
    return _each_experiment(question, request, database, lambda work, id: work.control.pause(id, within_s=within_s))


@router.post("/experiments:resume", operation_id="resume_experiments")
def resume_experiments(question: ManyExperiments, request: Request, database: DatabaseOf) -> BulkAnswers:
    """Resume each of them."""
    return _each_experiment(question, request, database, lambda work, id: work.control.resume(id))


@router.post("/experiments:cancel", operation_id="cancel_experiments")
def cancel_experiments(question: StopMany, request: Request, database: DatabaseOf) -> BulkAnswers:
    """Cancel each of them."""
    within_s = question.deadline_s or CANCEL_WITHIN_S

    def change(work: Work, id: str) -> ExperimentRecord:
        return work.experiments.request_cancel(id, within_s=within_s)

    return _each_experiment(question, request, database, change)


@router.post("/experiments:kill", operation_id="kill_experiments")
def kill_experiments(question: ManyExperiments, request: Request, database: DatabaseOf) -> BulkAnswers:
    """Kill each of them."""
    return _each_experiment(
        question, request, database, lambda work, id: work.experiments.request_cancel(id, within_s=0.0)
    )


@router.post("/experiments:prioritize", operation_id="prioritize_experiments")
def prioritize_experiments(question: PrioritizeMany, request: Request, database: DatabaseOf) -> BulkAnswers:
    """Give each of them the priority."""
    return _each_experiment(
        question, request, database, lambda work, id: work.control.prioritize(id, question.priority)
    )


@router.post("/trials:stop", operation_id="stop_trials")
def stop_trials(question: StopManyTrials, request: Request, database: DatabaseOf) -> BulkAnswers:
    """Stop each of them."""
    within_s = question.deadline_s or STOP_WITHIN_S

    def change(work: Work, id: str) -> BulkAnswer:
        return _done(id, work.control.stop_trial(id, within_s=within_s).state)

    open_states = [state for state in TrialState if not is_terminal(state)]
    return _each(_trial_ids(question, database, open_states), request, database, change)


@router.post("/trials:retry", operation_id="retry_trials")
def retry_trials(question: ManyTrials, request: Request, database: DatabaseOf) -> BulkAnswers:
    """Try each of them again."""

    def change(work: Work, id: str) -> BulkAnswer:
        again = work.control.retry_trial(id)
        return _done(id, work.trials.get(id).state, trial_id=again.id)

    return _each(_trial_ids(question, database, [TrialState.FAILED]), request, database, change)


# Who waits


@router.get("/queue", operation_id="get_queue")
def get_queue(database: DatabaseOf) -> QueueRead:
    """Who waits for places of the cluster and why, in the order in which they are given out."""
    with database.read() as work:
        standings = work.queue.standings()
        claimants = standings.claimants
        first = [id for id in standings.verdicts if id in claimants]
        holders = [id for id, claimant in claimants.items() if claimant.num_running and id not in standings.verdicts]
        items = [_entry(work.experiments.get(id), claimants[id], standings) for id in (*first, *holders)]
    total = None
    if standings.nodes:
        total = Amounts(**{kind: sum(getattr(node, kind) for node in standings.nodes) for kind in KINDS})
    used = [
        sum(one.num_running * one.need.num_workers * one.need.worker[place] for one in claimants.values())
        for place in range(len(KINDS))
    ]
    return QueueRead(
        is_served=standings.is_served, total=total, used=Amounts(**dict(zip(KINDS, used, strict=True))), items=items
    )


def _entry(record: ExperimentRecord, claimant: Claimant, standings: Standings) -> QueueEntry:
    verdict = standings.verdicts.get(record.id)
    return QueueEntry(
        experiment_id=record.id,
        name=record.name,
        state=record.state,
        owner=record.owner,
        priority=record.priority,
        num_workers=claimant.need.num_workers,
        per_worker=Amounts(**dict(zip(KINDS, claimant.need.worker, strict=True))),
        num_running=claimant.num_running,
        num_starts=0 if verdict is None else verdict.num_starts,
        num_ahead=0 if verdict is None else verdict.num_ahead,
        reason="" if verdict is None else verdict.reason,
    )


def _within_s(request: StopRequest | None, default: float) -> float:
    return default if request is None or request.deadline_s is None else request.deadline_s


def _changed(database: Database, change: Callable[[Work], ExperimentRecord]) -> ExperimentDetail:
    record = database.run(change)
    with database.read() as work:
        return experiment_detail(work, work.experiments.get(record.id))


def _shown(database: Database, trial_id: str) -> TrialDetail:
    with database.read() as work:
        return trial_detail(work, work.trials.get(trial_id))


def _each_experiment(
    question: ManyExperiments,
    request: Request,
    database: Database,
    change: Callable[[Work, str], ExperimentRecord],
) -> BulkAnswers:
    with database.read() as work:
        ids = question.ids if question.ids is not None else list(_matching(work, question.filter or ExperimentFilter()))
    return _each(ids, request, database, lambda work, id: _done(id, change(work, id).state))


def _each(
    ids: Sequence[str], request: Request, database: Database, change: Callable[[Work, str], BulkAnswer]
) -> BulkAnswers:
    answers: list[BulkAnswer] = []
    for id in dict.fromkeys(ids):
        try:
            answers.append(database.run(lambda work, id=id: change(work, id)))
        except StoreUnavailable:
            raise  # all of it can be asked again
        except EvenloadError as error:
            problem = problem_of(error, path=request.scope["path"], request_id=str(request.scope.get("request_id", "")))
            if problem is None:
                raise
            answers.append(BulkAnswer(id=id, ok=False, state=_state(database, id), trial_id=None, problem=problem))
    return BulkAnswers(items=answers)


def _done(id: str, state: str, *, trial_id: str | None = None) -> BulkAnswer:
    return BulkAnswer(id=id, ok=True, state=str(state), trial_id=trial_id, problem=None)


def _state(database: Database, id: str) -> str | None:
    with database.read() as work:
        try:
            found = work.trials.get(id) if id.startswith("trl_") else work.experiments.get(id)
        except EvenloadError:
            return None
        return found.state.value


def _matching(work: Work, chosen: ExperimentFilter) -> Iterator[str]:
    """Ids of the experiments that a filter chooses, newest first; without states, of those that have not ended."""
    cursor: str | None = None
    while True:
        page = work.experiments.list(limit=200, cursor=cursor)
        for record in page.items:
            by_state = not is_terminal(record.state) if chosen.states is None else record.state in chosen.states
            by_owner = chosen.owner is None or record.owner == chosen.owner
            if by_state and by_owner and (chosen.name_contains or "") in record.name:
                yield record.id
        cursor = page.next_cursor
        if cursor is None:
            return


def _trial_ids(question: ManyTrials, database: Database, states: Sequence[TrialState]) -> list[str]:
    """Ids of the trials; where a filter does not say in which states, in `states`."""
    if question.ids is not None:
        return question.ids
    chosen = question.filter
    assert isinstance(chosen, TrialFilter), "validated: ids or a filter"
    wanted = states if chosen.states is None else chosen.states
    with database.read() as work:
        work.experiments.get(chosen.experiment_id)
        return [trial.id for trial in work.trials.history(chosen.experiment_id) if trial.state in wanted]
