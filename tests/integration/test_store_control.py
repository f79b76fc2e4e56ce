"""What users ask for, on both databases: legal from which states, done once, answered in the rows."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from orchestrator.allocation import Verdict
from orchestrator.capacity import NodeCapacity
from orchestrator.errors import Fenced, IdempotencyKeyReused, IllegalTransition
from orchestrator.search.space import resolve
from orchestrator.spec import ExperimentSpec, Scalar
from orchestrator.states import Cause, ExperimentState, RunState, TrialState
from orchestrator.store.models import CommandRow, ExperimentRow
from orchestrator.store.records import Proposal, TrialKind
from orchestrator.store.session import Database, open_database
from orchestrator.store.work import Work
from tests.support.specs import experiment_document, experiment_spec
from tests.support.stores import FakeLeaseClock, claimed, proposed, started, submitted

_E = ExperimentState
NODES = (NodeCapacity(cpus=4, gpus=0, memory_gib=0),)


def in_state(database: Database, state: ExperimentState) -> str:
    """An experiment in a state."""
    if state is _E.QUEUED:
        return submitted(database)
    if state is _E.PAUSED:
        experiment_id = submitted(database)
        database.run(lambda work: work.control.pause(experiment_id))
        return experiment_id
    experiment_id, epoch = claimed(database)
    if state is _E.PAUSING:
        database.run(lambda work: work.control.pause(experiment_id))
    elif state is _E.CANCELLING:
        database.run(lambda work: work.experiments.request_cancel(experiment_id))
    elif state is _E.CANCELLED:
        database.run(lambda work: work.experiments.request_cancel(experiment_id))
        database.run(lambda work: work.experiments.settle(experiment_id, epoch=epoch, state=state))
    elif state is not _E.RUNNING:
        database.run(lambda work: work.experiments.settle(experiment_id, epoch=epoch, state=state))
    return experiment_id


VERBS: dict[str, tuple[Callable[[Work, str], object], dict[ExperimentState, ExperimentState]]] = {
    "pause": (
        lambda work, id: work.control.pause(id),
        {_E.QUEUED: _E.PAUSED, _E.RUNNING: _E.PAUSING, _E.PAUSING: _E.PAUSING, _E.PAUSED: _E.PAUSED},
    ),
    "resume": (
        lambda work, id: work.control.resume(id),
        {_E.QUEUED: _E.QUEUED, _E.RUNNING: _E.RUNNING, _E.PAUSING: _E.PAUSING, _E.PAUSED: _E.QUEUED},
    ),
    "cancel": (
        lambda work, id: work.experiments.request_cancel(id),
        {
            _E.QUEUED: _E.CANCELLED,
            _E.RUNNING: _E.CANCELLING,
            _E.PAUSING: _E.CANCELLING,
            _E.PAUSED: _E.CANCELLED,
            _E.CANCELLING: _E.CANCELLING,
            _E.CANCELLED: _E.CANCELLED,
        },
    ),
    "kill": (
        lambda work, id: work.experiments.request_cancel(id, within_s=0.0),
        {
            _E.QUEUED: _E.CANCELLED,
            _E.RUNNING: _E.CANCELLING,
            _E.PAUSING: _E.CANCELLING,
            _E.PAUSED: _E.CANCELLED,
            _E.CANCELLING: _E.CANCELLING,
            _E.CANCELLED: _E.CANCELLED,
        },
    ),
    "prioritize": (
        lambda work, id: work.control.prioritize(id, 7),
        {state: state for state in (_E.QUEUED, _E.RUNNING, _E.PAUSING, _E.PAUSED, _E.CANCELLING)},
    ),
}
"""Verb -> how it is asked for, and from which state it leads to which; from the others it is refused."""


@pytest.mark.parametrize("verb", VERBS)
def test_verb_is_done_once_from_the_states_that_allow_it_and_refused_from_the_others(
    database: Database, verb: str
) -> None:
    ask, moves = VERBS[verb]
    for state in ExperimentState:
        experiment_id = in_state(database, state)
        if state not in moves:
            with pytest.raises(IllegalTransition, match=state.value):
                database.run(lambda work, id=experiment_id: ask(work, id))
            continue
        database.run(lambda work, id=experiment_id: ask(work, id))
        with database.read() as work:
            first = work.experiments.get(experiment_id)
            last_event, commands = work.events.last_id(), work.commands.of_experiment(experiment_id)
        database.run(lambda work, id=experiment_id: ask(work, id))
        with database.read() as work:
            assert work.experiments.get(experiment_id) == first
            assert (work.events.last_id(), work.commands.of_experiment(experiment_id)) == (last_event, commands)
        assert first.state is moves[state], state


def test_resume_asked_for_while_pausing_is_done_when_that_has_come(database: Database) -> None:
    experiment_id, epoch = claimed(database)
    database.run(lambda work: work.control.pause(experiment_id))
    database.run(lambda work: work.control.resume(experiment_id))
    with database.read() as work:
        assert [command.kind for command in work.commands.pending(experiment_id)] == ["pause", "resume"]
    database.run(lambda work: work.experiments.settle(experiment_id, epoch=epoch, state=_E.PAUSED))
    with database.read() as work:
        assert work.experiments.get(experiment_id).state is _E.QUEUED
        assert {command.state for command in work.commands.of_experiment(experiment_id)} == {"applied"}


def test_wishes_that_came_too_late_are_rejected_with_the_reason(database: Database) -> None:
    experiment_id, epoch = claimed(database)
    database.run(lambda work: work.control.pause(experiment_id))
    database.run(lambda work: work.experiments.settle(experiment_id, epoch=epoch, state=_E.COMPLETED))
    with database.read() as work:
        (command,) = work.commands.of_experiment(experiment_id)
    assert (command.state, command.reason) == ("rejected", "the experiment had completed already")


def test_kill_shortens_a_cancel_that_is_under_way(database: Database) -> None:
    experiment_id = in_state(database, _E.CANCELLING)
    with database.read() as work:
        assert work.experiments.get(experiment_id).stop_within_s == 30.0
    database.run(lambda work: work.experiments.request_cancel(experiment_id, within_s=0.0))
    with database.read() as work:
        assert work.experiments.get(experiment_id).stop_within_s == 0.0


def failed_trial(database: Database) -> tuple[str, int, str]:
    """An experiment with a trial that has failed: its id, the epoch, the trial's id."""
    experiment_id, epoch = claimed(database)
    trial = proposed(database, experiment_id, epoch)
    run = started(database, trial.id, epoch)

    def fail(work: Work) -> None:
        work.runs.settle(run.id, epoch=epoch, state=RunState.FAILED, cause=Cause.OUT_OF_MEMORY)
        work.trials.settle(trial.id, epoch=epoch, state=TrialState.FAILED, cause=Cause.OUT_OF_MEMORY)

    database.run(fail)
    return experiment_id, epoch, trial.id


@pytest.mark.parametrize("ended", [False, True])
def test_failed_trial_is_tried_again_by_one_new_trial_and_stays_as_it_is(database: Database, ended: bool) -> None:
    experiment_id, epoch, failed = failed_trial(database)
    if ended:
        database.run(lambda work: work.experiments.settle(experiment_id, epoch=epoch, state=_E.FAILED))
    with database.read() as work:
        before = work.trials.get(failed)
    first, second = (database.run(lambda work: work.control.retry_trial(failed)) for _ in range(2))
    assert first == second
    assert (first.retry_of, first.kind, first.state) == (failed, TrialKind.ADDED, TrialState.QUEUED)
    assert (first.params, first.config) == (before.params, before.config)
    with database.read() as work:
        assert work.trials.get(failed) == before
        assert work.trials.retries([failed]) == {failed: first.id}
        assert len(work.trials.history(experiment_id)) == 2
        assert work.experiments.get(experiment_id).state is (_E.QUEUED if ended else _E.RUNNING)
    with pytest.raises(IllegalTransition, match="queued"):
        database.run(lambda work: work.control.retry_trial(first.id))


def test_point_is_added_once_per_key(database: Database) -> None:
    experiment_id = submitted(database)
    spec = experiment_spec()
    point: dict[str, Scalar] = dict.fromkeys(spec.space, 0.002)

    def add(key: str, mark: str = "one") -> str:
        proposal = Proposal(params=point, config=resolve(spec, point))
        return database.run(lambda work: work.control.add_trial(experiment_id, proposal, key=key, fingerprint=mark)).id

    assert add("k1") == add("k1")
    assert add("k1") != add("k2")
    with pytest.raises(IdempotencyKeyReused):
        add("k1", "another")
    with database.read() as work:
        assert [trial.kind for trial in work.trials.history(experiment_id)] == [TrialKind.ADDED] * 2


def test_stopped_trial_that_never_ran_is_cancelled_and_one_that_has_ended_is_not_stopped(database: Database) -> None:
    experiment_id, epoch = claimed(database)
    waiting = proposed(database, experiment_id, epoch)
    for _ in range(2):
        trial = database.run(lambda work: work.control.stop_trial(waiting.id))
        assert (trial.state, trial.cause) == (TrialState.CANCELLED, Cause.USER)
    with database.read() as work:
        (command,) = work.commands.of_experiment(experiment_id)
    assert (command.kind, command.state, command.trial_id) == ("stop", "applied", waiting.id)
    _, _, failed = failed_trial(database)
    with pytest.raises(IllegalTransition, match="failed"):
        database.run(lambda work: work.control.stop_trial(failed))


def test_drivers_of_two_experiments_never_take_the_last_place_both(database_url: str, database: Database) -> None:
    first, first_epoch = claimed(database, num_trials=20)
    second, second_epoch = claimed(database, num_trials=20)
    others = [open_database(database_url, lease_time=FakeLeaseClock()) for _ in range(2)]
    together = threading.Barrier(2)

    def take(index: int) -> int:
        experiment_id, epoch = ((first, first_epoch), (second, second_epoch))[index]
        num_taken = 0
        for _ in range(6):
            trial = proposed(others[index], experiment_id, epoch)
            together.wait(30)

            def change(work: Work, trial_id: str = trial.id) -> bool:
                if not work.queue.turn(experiment_id, epoch=epoch, nodes=NODES).num_starts:
                    return False
                work.queue.took(experiment_id)
                work.runs.start(trial_id, epoch=epoch)
                return True

            num_taken += others[index].run(change)
        return num_taken

    with ThreadPoolExecutor(2) as pool:
        taken = list(pool.map(take, range(2)))
    for other in others:
        other.close()
    assert taken == [2, 2], "four places, shared fairly and never taken twice"


def test_places_of_a_driver_that_is_gone_return_with_its_lease(database: Database, lease_clock: FakeLeaseClock) -> None:
    gone, gone_epoch = claimed(database, num_trials=4)
    for _ in range(4):
        started(database, proposed(database, gone, gone_epoch).id, gone_epoch)
    other, epoch = claimed(database)

    def verdict() -> Verdict:
        with database.transaction() as work:
            return work.queue.turn(other, epoch=epoch, nodes=NODES)

    assert verdict().reason == "needs 1 CPU on one node, 0 free; next in line"
    lease_clock.ms += 15_000
    assert verdict().num_starts == 1


NUM_RACES = 250
"""On each of the two databases."""


def test_I7_cancel_against_completion_gives_one_end_in_each_of_500_races(database_url: str, database: Database) -> None:
    spec, document = experiment_spec(), experiment_document()

    def begin(work: Work) -> list[tuple[str, int]]:
        ids = [work.experiments.submit(spec, document=document).experiment.id for _ in range(NUM_RACES)]
        epochs = [work.experiments.claim(id, owner="test", ttl_s=60) for id in ids]
        return [(id, epoch) for id, epoch in zip(ids, epochs, strict=True) if epoch is not None]

    races = database.run(begin)
    other = open_database(database_url, lease_time=FakeLeaseClock())
    together = threading.Barrier(2)

    def cancel(race: tuple[str, int]) -> None:
        experiment_id, epoch = race
        try:
            other.run(lambda work: work.experiments.request_cancel(experiment_id))
        except IllegalTransition:
            return  # it had completed
        other.run(lambda work: work.experiments.settle(experiment_id, epoch=epoch, state=_E.CANCELLED))

    def complete(race: tuple[str, int]) -> None:
        experiment_id, epoch = race
        try:
            database.run(lambda work: work.experiments.settle(experiment_id, epoch=epoch, state=_E.COMPLETED))
        except (IllegalTransition, Fenced):
            return  # it was being cancelled, or had been

    def run_all(action: Callable[[tuple[str, int]], None]) -> None:
        for index, race in enumerate(races):
            if index % 10 == 0:
                together.wait(60)
            try:
                action(race)
            except BaseException:
                together.abort()  # the other one need not wait
                raise

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run_all, (cancel, complete)))
    other.close()

    with database.read() as work:
        last: dict[str, list[str]] = {experiment_id: [] for experiment_id, _ in races}
        after = 0
        while events := work.events.after(after, limit=1000):
            after = events[-1].id
            for event in events:
                if event.kind == "experiment.state" and event.data["to"] in ("completed", "cancelled"):
                    last[event.experiment_id or ""].append(event.data["to"])
        states = work.connection.execute(select(ExperimentRow.id, ExperimentRow.state))
        ends = {row[0]: row[1] for row in states}
        applied = work.connection.execute(select(CommandRow.experiment_id).where(CommandRow.state == "applied"))
        cancelled = sorted(applied.scalars())
    assert len(races) == NUM_RACES
    assert last == {experiment_id: [end] for experiment_id, end in ends.items()}
    assert cancelled == sorted(id for id, end in ends.items() if end == "cancelled")


def test_spec_of_before_this_version_still_tells_what_its_trials_need(database: Database) -> None:
    experiment_id = submitted(database)
    with database.read() as work:
        spec = work.experiments.get(experiment_id).spec
    del spec["priority"], spec["resources"]["memory_gib_per_worker"]
    assert ExperimentSpec.model_validate(spec) == experiment_spec()
