"""Submitting, listing, cancelling and ending experiments."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.errors import IdempotencyKeyReused, IllegalTransition, InvalidCursor, NotFound
from orchestrator.spec import ExperimentSpec
from orchestrator.states import ExperimentState, RunState, TrialState
from orchestrator.store.records import TrialKind
from orchestrator.store.session import Database
from tests.support.specs import experiment_document, experiment_spec
from tests.support.stores import claimed, proposed, started, submitted


def test_submitted_experiment_is_read_back_as_it_was_sent(database: Database) -> None:
    document = experiment_document(name="b\u00e4r \u4e2d", description="x" * 5000)
    spec = ExperimentSpec.model_validate(document)
    with database.transaction() as work:
        submission = work.experiments.submit(spec, document=document, warnings=["careful"])
    assert not submission.replayed
    with database.read() as work:
        record = work.experiments.get(submission.experiment.id)
    assert record == submission.experiment
    assert record.document == document
    assert ExperimentSpec.model_validate(record.spec) == spec
    assert record.warnings == ("careful",)
    assert (record.state, record.reason) == (ExperimentState.QUEUED, "waiting for the orchestrator")


def test_baselines_are_the_first_trials_from_the_start(database: Database) -> None:
    experiment_id = submitted(database, baselines=[{"name": "dense", "set": {"model.moe": None}}, {"name": "base"}])
    with database.read() as work:
        trials = work.trials.history(experiment_id)
        counts = work.experiments.get(experiment_id).trial_counts
    assert [(trial.number, trial.kind, trial.label) for trial in trials] == [
        (0, TrialKind.BASELINE, "dense"),
        (1, TrialKind.BASELINE, "base"),
    ]
    assert trials[0].config is not None
    assert trials[0].config["model"]["moe"] is None
    assert counts == {TrialState.QUEUED: 2}


def test_I9_same_key_gives_the_first_answer_and_another_body_is_refused(database: Database) -> None:
    spec, document = experiment_spec(), experiment_document()
    with database.transaction() as work:
        first = work.experiments.submit(spec, document=document, key="k", fingerprint="f")
    with database.transaction() as work:
        again = work.experiments.submit(spec, document=document, key="k", fingerprint="f")
    assert again.replayed
    assert again.experiment == first.experiment
    with pytest.raises(IdempotencyKeyReused, match="take a new key"), database.transaction() as work:
        work.experiments.submit(spec, document=document, key="k", fingerprint="other")


def test_I9_many_submits_at_once_under_one_key_make_one_experiment(database: Database) -> None:
    spec, document = experiment_spec(), experiment_document()

    def submit(_: int) -> str:
        return database.run(
            lambda work: work.experiments.submit(spec, document=document, key="k", fingerprint="f").experiment.id
        )

    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(submit, range(24)))
    assert len(ids) == 1
    with database.read() as work:
        assert len(work.experiments.list().items) == 1


def test_transaction_that_raises_leaves_nothing(database: Database) -> None:
    def submit_and_fail() -> None:
        with database.transaction() as work:
            work.experiments.submit(experiment_spec(), document=experiment_document())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        submit_and_fail()
    with database.read() as work:
        assert work.experiments.list().items == ()
        assert work.events.last_id() == 0


def test_pages_cover_every_experiment_once_newest_first_while_new_ones_arrive(database: Database) -> None:
    ids = [submitted(database) for _ in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        with database.read() as work:
            page = work.experiments.list(limit=3, cursor=cursor)
        seen += [record.id for record in page.items]
        submitted(database)
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
    assert seen == ids[::-1]


def test_list_takes_a_state(database: Database) -> None:
    submitted(database)
    running, _ = claimed(database)
    with database.read() as work:
        page = work.experiments.list(state=ExperimentState.RUNNING)
    assert [record.id for record in page.items] == [running]


@pytest.mark.parametrize("cursor", ["", "x", "MTIz", "\u00e9", "a" * 500, "LTE6Og", "MTA6"])
def test_foreign_cursor_is_refused_or_harmless(database: Database, cursor: str) -> None:
    submitted(database)
    with database.read() as work:
        try:
            page = work.experiments.list(cursor=cursor)
        except InvalidCursor:
            return
        assert page.next_cursor is None


def test_unknown_ids_are_not_found(database: Database) -> None:
    with database.read() as work:
        for get in (work.experiments.get, work.trials.get, work.runs.get):
            with pytest.raises(NotFound, match="no_such_thing"):
                get("no_such_thing")


def test_queued_experiment_is_cancelled_at_once_with_its_trials(database: Database) -> None:
    experiment_id = submitted(database, baselines=[{"name": "base"}])
    with database.transaction() as work:
        record = work.experiments.request_cancel(experiment_id)
    assert record.state is ExperimentState.CANCELLED
    assert record.finished_at_ms is not None
    assert record.trial_counts == {TrialState.CANCELLED: 1}
    with database.transaction() as work:
        assert work.experiments.request_cancel(experiment_id) == record
        assert work.commands.pending(experiment_id) == ()


def test_running_experiment_is_cancelled_by_its_driver_with_everything_live(database: Database) -> None:
    experiment_id, epoch = claimed(database)
    trial = proposed(database, experiment_id, epoch)
    run = started(database, trial.id, epoch)
    with database.transaction() as work:
        work.experiments.request_cancel(experiment_id)
        work.experiments.request_cancel(experiment_id)
        assert [command.kind for command in work.commands.pending(experiment_id)] == ["cancel"]
    with database.transaction() as work:
        assert work.experiments.renew(experiment_id, epoch=epoch, ttl_s=9) is ExperimentState.CANCELLING
        work.experiments.settle(experiment_id, epoch=epoch, state=ExperimentState.CANCELLED, reason="by the user")
    with database.read() as work:
        assert work.trials.get(trial.id).state is TrialState.CANCELLED
        assert work.runs.get(run.id).state is RunState.CANCELLED
        assert work.commands.pending(experiment_id) == ()


def test_experiment_with_open_trials_cannot_complete(database: Database) -> None:
    experiment_id, epoch = claimed(database)
    proposed(database, experiment_id, epoch)
    with pytest.raises(IllegalTransition, match="trial 0 is queued"), database.transaction() as work:
        work.experiments.settle(experiment_id, epoch=epoch, state=ExperimentState.COMPLETED)


def test_completed_experiment_cannot_be_cancelled(database: Database) -> None:
    experiment_id, epoch = claimed(database)
    with database.transaction() as work:
        work.experiments.settle(experiment_id, epoch=epoch, state=ExperimentState.COMPLETED)
    with pytest.raises(IllegalTransition, match="completed"), database.transaction() as work:
        work.experiments.request_cancel(experiment_id)


def test_I7_cancel_and_completion_at_once_have_one_winner(database: Database) -> None:
    for _ in range(6):
        experiment_id, epoch = claimed(database)

        def cancel(experiment_id: str = experiment_id) -> None:
            with database.transaction() as work:
                work.experiments.request_cancel(experiment_id)

        def complete(experiment_id: str = experiment_id, epoch: int = epoch) -> None:
            with database.transaction() as work:
                work.experiments.settle(experiment_id, epoch=epoch, state=ExperimentState.COMPLETED)

        with ThreadPoolExecutor(2) as pool:
            failures = [future.exception() for future in (pool.submit(cancel), pool.submit(complete))]
        assert sum(isinstance(failure, IllegalTransition) for failure in failures) == 1
        with database.read() as work:
            moves = [
                event.data["to"]
                for event in work.events.after(0, experiment_id=experiment_id)
                if event.kind == "experiment.state"
            ]
            state = work.experiments.get(experiment_id).state
        assert moves[-1] == state
        assert state in (ExperimentState.CANCELLING, ExperimentState.COMPLETED)


def test_I3_every_change_of_state_is_one_event_in_the_order_of_ids(database: Database) -> None:
    experiment_id, epoch = claimed(database)
    trial = proposed(database, experiment_id, epoch)
    run = started(database, trial.id, epoch)
    with database.transaction() as work:
        work.runs.settle(run.id, epoch=epoch, state=RunState.COMPLETED)
        work.trials.settle(trial.id, epoch=epoch, state=TrialState.COMPLETED, objective=1.0, objective_tokens=5)
        work.experiments.settle(experiment_id, epoch=epoch, state=ExperimentState.COMPLETED)
    with database.read() as work:
        events = work.events.after(0, experiment_id=experiment_id)
        assert [event.id for event in events] == sorted({event.id for event in events})
        assert [(event.kind, event.data.get("to")) for event in events] == [
            ("experiment.state", "queued"),
            ("experiment.state", "running"),
            ("trial.proposed", None),
            ("trial.state", "running"),
            ("run.state", "starting"),
            ("run.state", "running"),
            ("run.state", "completed"),
            ("trial.state", "completed"),
            ("experiment.state", "completed"),
        ]
        assert work.events.after(events[3].id, experiment_id=experiment_id, limit=2) == events[4:6]


def test_reader_of_events_misses_none_that_commit_out_of_order(database: Database) -> None:
    """Writers that overlap: an event is visible only after every event with a lower id is."""
    ids = [submitted(database) for _ in range(4)]
    seen: list[int] = []

    def write(experiment_id: str) -> None:
        for _ in range(5):
            with database.transaction() as work:
                work.events.add("spike", experiment_id=experiment_id, data={})
                work.events.add("spike", experiment_id=experiment_id, data={})

    with database.read() as work:
        last = work.events.last_id()
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, experiment_id) for experiment_id in ids]
        while not all(future.done() for future in writing):
            with database.read() as work:
                seen += [event.id for event in work.events.after(seen[-1] if seen else last)]
    with database.read() as work:
        seen += [event.id for event in work.events.after(seen[-1] if seen else last)]
        assert seen == [event.id for event in work.events.after(last)]
    assert len(seen) == 40
