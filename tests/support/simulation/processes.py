"""What the processes of the simulated world do: the protocol of the real ones, with the real `plan`, step by step."""

from collections.abc import Generator
from typing import Any, NamedTuple

from orchestrator.errors import IdempotencyKeyReused, IllegalTransition, NotFound, StoreUnavailable
from orchestrator.execution.plan import (
    Action,
    Cancel,
    DriverView,
    EndDriver,
    ExperimentView,
    GiveUp,
    Launch,
    Pause,
    ServiceState,
    ServiceView,
    StartService,
    plan,
)
from orchestrator.spec import ExperimentSpec
from orchestrator.states import ExperimentState
from tests.support.history import Accepted
from tests.support.simulation.driver import drive
from tests.support.simulation.world import Process, Steps, World

_UNSETTLED = (
    ExperimentState.QUEUED,
    ExperimentState.RUNNING,
    ExperimentState.PAUSING,
    ExperimentState.CANCELLING,
)
_LAUNCH_TTL_S = 60.0


class Submit(NamedTuple):
    """A client's request."""

    sender: Process
    key: str
    spec: ExperimentSpec
    document: dict[str, Any]


class Wish(NamedTuple):
    """A client's request to `cancel`, `pause` or `resume`."""

    sender: Process
    experiment_id: str
    verb: str


def client(world: World, me: Process, request: tuple[str, ExperimentSpec, dict[str, Any]], *, wishes: str) -> Steps:
    """Submits until it is told that it was taken; then wishes for this and that, each until it is answered.

    Args:
        wishes: one letter each: c(ancel), p(ause), r(esume).
    """
    answer = yield from _ask(world, me, Submit(me, *request))
    if answer is None:
        return
    world.accepted.append(Accepted(request[0], answer))
    for wish in wishes:
        for _ in range(world.rng.randrange(12)):
            yield
        yield from _ask(world, me, Wish(me, answer, {"c": "cancel", "p": "pause", "r": "resume"}[wish]))


def caretaker(world: World, me: Process) -> Steps:
    """Resumes what is paused: a wish to pause that was sent twice may have arrived after that to resume."""
    while True:
        with world.store.read() as work:
            states = {record.id: record.state for record in work.experiments.list(limit=200).items}
        for id, state in states.items():
            if state in (ExperimentState.PAUSED, ExperimentState.PAUSING):
                world.write(lambda work, id=id: work.control.resume(id))
        yield


def _ask(world: World, me: Process, request: Any) -> Generator[None, None, Any]:
    while True:
        world.send(None, request)
        for _ in range(world.rng.randrange(3, 9)):
            yield
            while me.inbox:
                asked, answer = me.inbox.popleft()
                if asked == _kind(request):
                    return answer


def _kind(request: Any) -> Any:
    return request.verb if isinstance(request, Wish) else type(request)


def api(world: World, me: Process, request: Any) -> Steps:
    """Answers one request; a client that gets no answer, or that it should come again, asks again."""
    yield
    answer: Any = None
    try:
        if isinstance(request, Submit):
            submission = world.write(
                lambda work: work.experiments.submit(
                    request.spec, document=request.document, key=request.key, fingerprint=request.spec.name
                )
            )
            answer = submission.experiment.id
        else:
            world.write(lambda work: _carry_out(work, request))
            answer = request.experiment_id
    except StoreUnavailable:
        return
    except (IllegalTransition, IdempotencyKeyReused, NotFound):
        answer = None
    yield
    world.send(request.sender, (_kind(request), answer))


def _carry_out(work: Any, wish: Wish) -> None:
    if wish.verb == "cancel":
        work.experiments.request_cancel(wish.experiment_id)
    elif wish.verb == "pause":
        work.control.pause(wish.experiment_id)
    else:
        work.control.resume(wish.experiment_id)


def follower(world: World, me: Process, after: int) -> Steps:
    """Follows the log as event streams do."""
    while True:
        yield
        events = world.read(lambda work, after=after: work.events.after(after))
        world.observed += events
        after = events[-1].id if events else after


class _Launches:
    """What a daemon remembers of an experiment's drivers, until it dies."""

    def __init__(self) -> None:
        self.num_fruitless = 0
        self.at_ms: int | None = None
        self.progress: Any = None
        self.child: Process | None = None
        self.lease_ended_ms: int | None = None


def daemon(world: World, me: Process) -> Steps:
    """Looks, plans, acts. It may die between any two actions, and within one."""
    launches: dict[str, _Launches] = {}
    while True:
        yield
        if world.ray is ServiceState.STARTING:
            world.ray = ServiceState.READY
        views = _views(world, me, launches)
        for action in plan([ServiceView(name="ray", state=world.ray)], views):
            world.trace.append((me.host, type(action).__name__))
            try:
                yield from _act(world, me, action, launches)
            except (StoreUnavailable, IllegalTransition):
                break


def _views(world: World, me: Process, launches: dict[str, _Launches]) -> list[ExperimentView]:
    with world.store.read() as work:
        claimable = set(work.experiments.claimable())
        records = [record for state in _UNSETTLED for record in work.experiments.list(limit=200, state=state).items]
        progress = [_progress(work, record) for record in records]
    looked = reversed(list(zip(records, progress, strict=True)))
    return [_view(world, me, record, record.id in claimable, how_far, launches) for record, how_far in looked]


def _progress(work: Any, record: Any) -> tuple[int, int]:
    newest = (work.checkpoints.newest(trial.id) for trial in work.trials.unsettled(record.id))
    return record.sequence, sum(checkpoint.tokens for checkpoint in newest if checkpoint is not None)


def _view(
    world: World,
    me: Process,
    record: Any,
    is_claimable: bool,
    progress: tuple[int, int],
    launches: dict[str, _Launches],
) -> ExperimentView:
    known = launches.setdefault(record.id, _Launches())
    if progress != known.progress:
        known.progress, known.num_fruitless = progress, 0
    said = world.disk.drivers.get((me.host, record.id))
    view = None if said is None else DriverView(epoch=said[1], is_alive=said[0].is_alive)
    if known.child is not None and known.child.is_alive:
        view = DriverView(epoch=record.epoch, is_alive=True)
    if not is_claimable or record.lease_until_ms is None:
        known.lease_ended_ms = None
    elif known.lease_ended_ms is None:
        known.lease_ended_ms = world.ms
    return ExperimentView(
        id=record.id,
        state=record.state,
        epoch=record.epoch,
        has_live_lease=not is_claimable,
        lease_ended_s=None if known.lease_ended_ms is None else (world.ms - known.lease_ended_ms) / 1000,
        driver=view,
        num_fruitless=known.num_fruitless,
        since_launch_s=None if known.at_ms is None else (world.ms - known.at_ms) / 1000,
    )


def _act(world: World, me: Process, action: Action, launches: dict[str, _Launches]) -> Steps:
    yield
    if isinstance(action, StartService):
        world.ray = ServiceState.STARTING
    elif isinstance(action, EndDriver):
        said = world.disk.drivers.get((me.host, action.experiment_id))
        if said is not None:
            world.kill(said[0])
    elif isinstance(action, Launch):
        epoch = world.write(lambda work: _claimed(work, me, action))
        yield
        if epoch is not None:
            known = launches[action.experiment_id]
            known.num_fruitless += 1
            known.at_ms = world.ms
            known.child = world.spawn("driver", me.host, lambda it: drive(world, it, action.experiment_id, epoch))
    else:
        _settle(world, me, action)


_SETTLED = {
    Cancel: ExperimentState.CANCELLED,
    Pause: ExperimentState.PAUSED,
    GiveUp: ExperimentState.FAILED,
}


def _settle(world: World, me: Process, action: Cancel | Pause | GiveUp) -> None:
    id, state = action.experiment_id, _SETTLED[type(action)]

    def change(work: Any) -> None:
        epoch = _claimed(work, me, action)
        if epoch is None:
            return
        if state is ExperimentState.PAUSED:
            work.trials.lose_runs(id, epoch=epoch, reason="paused", counts=False)
        work.experiments.settle(id, epoch=epoch, state=state, reason="settled")

    world.write(change)


def _claimed(work: Any, me: Process, action: Launch | Cancel | Pause | GiveUp) -> int | None:
    if action.release:
        work.experiments.release(action.experiment_id, epoch=work.experiments.get(action.experiment_id).epoch)
    return work.experiments.claim(action.experiment_id, owner=me.host, ttl_s=_LAUNCH_TTL_S)
