"""Control of an experiment whose runs are played from a script: pausing, single trials, taking turns."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.capacity import NodeCapacity
from orchestrator.execution.conductor import Conductor, Next, Places, Stopping
from orchestrator.search.space import resolve
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, ExperimentState, RunState, TrialState
from orchestrator.store.records import Proposal, RungDecision, TrialRecord
from orchestrator.store.session import Database
from tests.support.sweeps import play, sqlite_database, started, submit, sweep_document, table, take_over
from trainer.config.run import DomainEvaluation, RunReport, RunRequest

POINT = {"optimizer.lr": 0.001}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    yield from sqlite_database(tmp_path)


def pause_and_resume(database: Database, conductor: Conductor) -> None:
    """Pauses the experiment, whose live runs do not answer any more, and resumes it."""
    database.run(lambda work: work.control.pause(conductor.experiment_id))
    assert conductor.watch(ttl_s=15) is ExperimentState.PAUSING
    assert conductor.stop_within_s == 60.0
    conductor.stop(Stopping.PAUSE)
    conductor.settle()
    with database.read() as work:
        assert work.experiments.get(conductor.experiment_id).state is ExperimentState.PAUSED
        assert not work.runs.live(conductor.experiment_id)
    database.run(lambda work: work.control.resume(conductor.experiment_id))


def added(database: Database, experiment_id: str, point: dict[str, Any] = POINT) -> TrialRecord:
    """A trial at a point by hand."""
    with database.transaction() as work:
        spec = ExperimentSpec.model_validate(work.experiments.get(experiment_id).spec)
        return work.control.add_trial(experiment_id, Proposal(params=dict(point), config=resolve(spec, point)))


def trial_of(database: Database, trial_id: str) -> TrialRecord:
    with database.read() as work:
        return work.trials.get(trial_id)


def test_paused_run_ends_with_its_checkpoint_and_goes_on_from_it_at_no_cost(database: Database, tmp_path: Path) -> None:
    experiment_id = submit(database, sweep_document(num_trials=1, max_retries=0))
    conductor = take_over(database, tmp_path, experiment_id)
    play(conductor, max_calls=5)  # past the rung at step 8
    (run,) = conductor.live_runs()
    database.run(lambda work: work.control.pause(experiment_id))
    conductor.watch(ttl_s=15)
    conductor.stop(Stopping.PAUSE)
    assert (tmp_path / run.folder / "stop").exists()
    assert conductor.next_run() is Next.FINISHED
    conductor.report(run.id, RunReport(kind="stopped", step=9, tokens=9 * 128))
    conductor.settle()
    with database.read() as work:
        (trial,) = work.trials.history(experiment_id)
        (run,) = work.runs.of_trial(trial.id)
        assert work.experiments.get(experiment_id).state is ExperimentState.PAUSED
        assert work.experiments.claimable() == ()
    assert (run.state, run.reason) == (RunState.COMPLETED, "paused by the user")
    assert (trial.state, trial.num_retries) == (TrialState.RETRYING, 0)

    database.run(lambda work: work.control.resume(experiment_id))
    with database.transaction() as work:
        epoch = work.experiments.claim(experiment_id, owner="test", ttl_s=60)
    assert epoch == 2
    places = Places(max_concurrent=1, num_threads=1, use_gpu=False)
    resumed = Conductor(database, tmp_path, experiment_id=experiment_id, epoch=epoch, places=places)
    resumed.recover()
    request = resumed.next_run()
    assert isinstance(request, RunRequest)
    assert request.resume_from is not None
    assert request.resume_from.endswith("step-00000008")


@pytest.mark.parametrize("pause_after", [2, 12, 22])
def test_synchronous_sweep_paused_anywhere_gives_the_same_table(
    database: Database, tmp_path: Path, pause_after: int
) -> None:
    document = sweep_document(
        num_trials=4, batch_size=2, synchronous=True, sampler={"kind": "tpe", "num_startup_trials": 2}
    )
    undisturbed, paused = submit(database, document), submit(database, document)
    play(take_over(database, tmp_path, undisturbed, max_concurrent=1))
    for _ in range(2):
        conductor = take_over(database, tmp_path, paused)
        play(conductor, max_calls=pause_after)
        with database.read() as work:
            assert work.experiments.get(paused).state is ExperimentState.RUNNING
        pause_and_resume(database, conductor)
    play(take_over(database, tmp_path, paused, max_concurrent=3))
    assert table(database, paused) == table(database, undisturbed)


def test_trial_stopped_by_the_user_keeps_what_it_came_to_and_the_search_goes_on(
    database: Database, tmp_path: Path
) -> None:
    experiment_id = submit(database, sweep_document(num_trials=2, scheduler={"kind": "none"}))
    conductor = take_over(database, tmp_path, experiment_id, max_concurrent=1)
    request = started(conductor)
    evaluation = {"all": DomainEvaluation(bits_per_byte=3.5, loss=4.0)}
    conductor.report(request.run_id, RunReport(kind="progress", step=4, tokens=512, evaluation=evaluation))
    (live,) = conductor.live_runs()
    database.run(lambda work: work.control.stop_trial(live.trial_id))
    conductor.watch(ttl_s=15)
    assert (Path(request.folder) / "stop").exists()
    conductor.report(request.run_id, RunReport(kind="stopped", step=5, tokens=640))
    with database.read() as work:
        trial, (run,) = work.trials.get(live.trial_id), work.runs.of_trial(live.trial_id)
        (command,) = work.commands.of_experiment(experiment_id)
    assert (trial.state, trial.cause, trial.objective, trial.objective_tokens) == (
        TrialState.PRUNED,
        Cause.USER,
        3.5,
        512,
    )
    assert (run.state, run.cause) == (RunState.PRUNED, Cause.USER)
    assert command.state == "applied"
    play(conductor)
    with database.read() as work:
        states = [trial.state for trial in work.trials.history(experiment_id)]
    assert states == [TrialState.PRUNED, TrialState.COMPLETED]


def test_stop_of_a_trial_is_carried_out_by_the_next_driver_if_this_one_is_killed(
    database: Database, tmp_path: Path
) -> None:
    experiment_id = submit(database, sweep_document(num_trials=1))
    play(take_over(database, tmp_path, experiment_id), max_calls=5)
    with database.read() as work:
        (trial,) = work.trials.history(experiment_id)
    database.run(lambda work: work.control.stop_trial(trial.id))
    conductor = take_over(database, tmp_path, experiment_id)
    ended = trial_of(database, trial.id)
    assert (ended.state, ended.cause, ended.objective) == (TrialState.PRUNED, Cause.USER, trial.rungs[0].value)
    assert conductor.next_run() is Next.FINISHED


def test_stopped_trial_that_does_not_end_in_time_is_killed_and_keeps_what_it_came_to(
    database: Database, tmp_path: Path
) -> None:
    experiment_id = submit(database, sweep_document(num_trials=1, max_retries=0))
    conductor = take_over(database, tmp_path, experiment_id)
    play(conductor, max_calls=5)
    (run,) = conductor.live_runs()
    database.run(lambda work: work.control.stop_trial(run.trial_id))
    conductor.watch(ttl_s=15)
    assert conductor.overdue() == ()
    for within_s in (0.0, 30.0):  # asked again with less time, it has less, and with more no more
        database.run(lambda work, within_s=within_s: work.control.stop_trial(run.trial_id, within_s=within_s))
    conductor.watch(ttl_s=15)
    assert conductor.overdue() == (run.id,)
    conductor.ended(run.id, "process lost: killed")
    ended = trial_of(database, run.trial_id)
    reason = "stopped by the user; killed, as it had not ended within 0 s"
    assert (ended.state, ended.cause, ended.reason) == (TrialState.PRUNED, Cause.USER, reason)
    assert (ended.objective, ended.num_retries) == (ended.rungs[0].value, 0)
    with database.read() as work:
        (command,) = work.commands.of_experiment(experiment_id)
        assert work.runs.of_trial(run.trial_id)[0].state is RunState.LOST
    assert (command.state, command.payload) == ("applied", {"within_s": 0.0})
    assert conductor.overdue() == ()
    assert conductor.next_run() is Next.FINISHED


def test_stop_that_comes_after_the_end_is_rejected(database: Database, tmp_path: Path) -> None:
    experiment_id = submit(database, sweep_document(num_trials=1))
    conductor = take_over(database, tmp_path, experiment_id)
    play(conductor, max_calls=2)
    (live,) = conductor.live_runs()
    database.run(lambda work: work.control.stop_trial(live.trial_id))
    failed = RunReport(kind="failed", step=3, tokens=9, cause="diverged", message="loss is nan")
    conductor.report(live.id, failed)
    conductor.watch(ttl_s=15)
    with database.read() as work:
        (command,) = work.commands.of_experiment(experiment_id)
    assert (command.state, command.reason) == ("rejected", "the trial had failed already")


@pytest.mark.parametrize("synchronous", [False, True])
def test_trials_added_by_hand_change_nothing_of_the_search(
    database: Database, tmp_path: Path, synchronous: bool
) -> None:
    document = sweep_document(
        num_trials=4, batch_size=2, synchronous=synchronous, sampler={"kind": "tpe", "num_startup_trials": 2}
    )
    plain, disturbed = submit(database, document), submit(database, document)
    play(take_over(database, tmp_path, plain, max_concurrent=1))
    first = added(database, disturbed)
    conductor = take_over(database, tmp_path, disturbed, max_concurrent=1)
    play(conductor, max_calls=12)
    second = added(database, disturbed, {"optimizer.lr": 0.02})
    conductor.watch(ttl_s=15)
    play(take_over(database, tmp_path, disturbed, max_concurrent=1))
    for trial in (trial_of(database, first.id), trial_of(database, second.id)):
        assert trial.state is TrialState.COMPLETED, "it is never stopped early"
        assert all(rung.decision is RungDecision.CONTINUE for rung in trial.rungs)
    searched = [row[1:6] for row in table(database, disturbed) if row[1] == "search"]
    assert searched == [row[1:6] for row in table(database, plain)]


def conductor_on(database: Database, root: Path, nodes: tuple[NodeCapacity, ...]) -> Conductor:
    """The conductor of a new experiment of 4 trials on a cluster of these nodes."""
    experiment_id = submit(database, sweep_document(num_trials=4, scheduler={"kind": "none"}))
    with database.transaction() as work:
        epoch = work.experiments.claim(experiment_id, owner="test", ttl_s=60)
    assert epoch is not None
    places = Places(max_concurrent=2, num_threads=1, use_gpu=False, nodes=nodes)
    return Conductor(database, root, experiment_id=experiment_id, epoch=epoch, places=places)


def test_two_experiments_take_turns_on_one_cluster_and_say_what_they_wait_for(
    database: Database, tmp_path: Path
) -> None:
    nodes = (NodeCapacity(cpus=2, gpus=0, memory_gib=0),)
    first, second = conductor_on(database, tmp_path, nodes), conductor_on(database, tmp_path, nodes)
    # The second has not asked yet, but it is known that it will: the first gets its share, not everything.
    mine = started(first)
    assert first.next_run() is Next.WAIT
    started(second)
    with database.read() as work:
        verdicts = work.queue.standings(nodes=nodes).verdicts
    assert verdicts[first.experiment_id].reason == "needs 1 CPU on one node, 0 free; next in line"
    assert verdicts[second.experiment_id].reason.endswith("0 free; 1 ahead")
    first.ended(mine.run_id, "its process was lost")
    assert isinstance(first.next_run(), RunRequest), "its place came free, and it holds the smaller share"


def test_experiment_with_nothing_left_ends_though_others_hold_every_place(database: Database, tmp_path: Path) -> None:
    nodes = (NodeCapacity(cpus=1, gpus=0, memory_gib=0),)
    over = conductor_on(database, tmp_path, nodes)
    for _ in range(4):
        failed = RunReport(kind="failed", step=1, tokens=1, cause="error", message="no")
        over.report(started(over).run_id, failed)
    waiting = conductor_on(database, tmp_path, nodes)
    started(waiting)
    assert waiting.next_run() is Next.WAIT
    assert over.next_run() is Next.FINISHED


def test_pause_that_comes_when_all_is_over_lets_the_experiment_complete(database: Database, tmp_path: Path) -> None:
    experiment_id = submit(database, sweep_document(num_trials=1))
    conductor = take_over(database, tmp_path, experiment_id)
    failed = RunReport(kind="failed", step=1, tokens=1, cause="diverged", message="no")
    conductor.report(started(conductor).run_id, failed)
    assert conductor.next_run() is Next.FINISHED
    database.run(lambda work: work.control.pause(experiment_id))
    conductor.watch(ttl_s=15)
    conductor.stop(Stopping.PAUSE)
    conductor.settle()
    with database.read() as work:
        assert work.experiments.get(experiment_id).state is ExperimentState.FAILED
        (command,) = work.commands.of_experiment(experiment_id)
    assert (command.state, command.reason) == ("rejected", "the experiment had failed already")
