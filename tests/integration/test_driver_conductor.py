"""The conductor over a SQLite file, with runs played from a script: rungs, batches, retries, crashes anywhere."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.execution.conductor import Next, Stopping
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, ExperimentState, RunState, TrialState
from orchestrator.store.records import RungDecision
from orchestrator.store.session import Database
from tests.support.replay import not_replayed
from tests.support.sweeps import (
    play,
    scripted_value,
    sqlite_database,
    started,
    submit,
    sweep_document,
    table,
    take_over,
)
from trainer.config.run import DomainEvaluation, RunReport, RunRequest


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    yield from sqlite_database(tmp_path)


def test_sweep_proposes_prunes_and_completes(database: Database, tmp_path: Path) -> None:
    document = sweep_document(num_trials=6, baselines=[{"name": "dense", "set": {"model.moe": None}}])
    experiment_id = submit(database, document)
    play(take_over(database, tmp_path, experiment_id))

    with database.read() as work:
        trials = work.trials.history(experiment_id)
        experiment = work.experiments.get(experiment_id)
        runs = work.runs.of_experiment(experiment_id)
    assert experiment.state is ExperimentState.COMPLETED
    assert len(trials) == 7
    assert trials[0].state is TrialState.COMPLETED, "a baseline is never stopped early"
    assert {trial.state for trial in trials} == {TrialState.COMPLETED, TrialState.PRUNED}
    assert len(runs) == 7
    for trial in trials:
        if trial.state is TrialState.PRUNED:
            last = trial.rungs[-1]
            assert trial.cause is Cause.ASHA
            assert last.decision is RungDecision.STOP
            assert (trial.objective, trial.objective_tokens) == (last.value, last.tokens)
            assert trial.reason == last.explanation


def test_no_more_trials_run_at_a_time_than_there_are_places(database: Database, tmp_path: Path) -> None:
    conductor = take_over(database, tmp_path, submit(database, sweep_document()), max_concurrent=2)
    requests = [conductor.next_run() for _ in range(4)]
    assert [request is Next.WAIT for request in requests] == [False, False, True, True]


def test_ended_trial_keeps_only_its_newest_checkpoint(database: Database, tmp_path: Path) -> None:
    experiment_id = submit(database, sweep_document(num_trials=3))
    play(take_over(database, tmp_path, experiment_id))
    with database.read() as work:
        kept = {
            tmp_path / checkpoint.folder
            for trial in work.trials.history(experiment_id)
            for checkpoint in work.checkpoints.of_trial(trial.id)
        }
    assert len(kept) == 3
    assert set(tmp_path.glob("experiments/*/trials/*/*/checkpoints/*")) == kept


def test_live_trial_keeps_its_rungs_and_its_newest_checkpoint(database: Database, tmp_path: Path) -> None:
    experiment_id = submit(database, sweep_document(num_trials=1, num_steps=64))
    conductor = take_over(database, tmp_path, experiment_id)
    play(conductor, max_calls=9)
    with database.read() as work:
        trial = work.trials.history(experiment_id)[0]
        steps = [checkpoint.step for checkpoint in work.checkpoints.of_trial(trial.id)]
    assert trial.state is TrialState.RUNNING
    assert steps == [8, 16, 32]


def test_lost_run_resumes_from_its_newest_checkpoint_until_retries_are_used_up(
    database: Database, tmp_path: Path
) -> None:
    experiment_id = submit(database, sweep_document(num_trials=1, max_retries=2))
    conductor = take_over(database, tmp_path, experiment_id)
    play(conductor, max_calls=5)  # past the rung at step 8
    for _ in range(3):
        live = conductor.live_runs()
        if not live:
            resumed = started(conductor)
            assert resumed.resume_from is not None
            assert resumed.resume_from.endswith("step-00000008")
            live = conductor.live_runs()
        conductor.ended(live[0].id, "its process was lost")
    assert conductor.next_run() is Next.FINISHED
    with database.read() as work:
        trial = work.trials.history(experiment_id)[0]
        states = [run.state for run in work.runs.of_trial(trial.id)]
    assert (trial.state, trial.cause) == (TrialState.FAILED, Cause.RETRIES_EXHAUSTED)
    assert states == [RunState.LOST] * 3


def test_I6_damaged_checkpoint_is_passed_over(database: Database, tmp_path: Path) -> None:
    experiment_id = submit(database, sweep_document(num_trials=1, num_steps=64))
    play(take_over(database, tmp_path, experiment_id), max_calls=7)  # checkpoints at steps 8 and 16
    newest = max(tmp_path.glob("experiments/*/trials/*/*/checkpoints/*"))
    assert newest.name == "step-00000016"
    (newest / "model.safetensors").write_bytes(b"weight")
    request = take_over(database, tmp_path, experiment_id).next_run()
    assert isinstance(request, RunRequest)
    assert request.resume_from is not None
    assert request.resume_from.endswith("step-00000008")


def test_failure_of_a_trial_is_not_retried(database: Database, tmp_path: Path) -> None:
    experiment_id = submit(database, sweep_document(num_trials=1))
    conductor = take_over(database, tmp_path, experiment_id)
    request = started(conductor)
    conductor.report(
        request.run_id, RunReport(kind="failed", step=3, tokens=9, cause="diverged", message="loss is nan at step 3")
    )
    assert conductor.next_run() is Next.FINISHED
    conductor.settle()
    with database.read() as work:
        trial = work.trials.history(experiment_id)[0]
        experiment = work.experiments.get(experiment_id)
    assert (trial.state, trial.cause, trial.reason) == (TrialState.FAILED, Cause.DIVERGED, "loss is nan at step 3")
    assert experiment.state is ExperimentState.FAILED, "no trial gave a result"
    assert "loss is nan at step 3" in experiment.reason


def test_infeasible_points_are_settled_without_a_run(database: Database, tmp_path: Path) -> None:
    # 5 does not divide 2 attention heads: half of the grid is no valid configuration.
    document = sweep_document(
        space={"model.attention.num_kv_heads": {"choice": [1, 3]}},
        sampler={"kind": "grid"},
        scheduler={"kind": "none"},
        num_trials=None,
    )
    experiment_id = submit(database, document)
    play(take_over(database, tmp_path, experiment_id))
    with database.read() as work:
        states = sorted(trial.state for trial in work.trials.history(experiment_id))
        runs = work.runs.of_experiment(experiment_id)
    assert states == [TrialState.COMPLETED, TrialState.INFEASIBLE]
    assert len(runs) == 1


@pytest.mark.parametrize("crash_after", range(1, 26, 4))
def test_I2_I3_I7_asynchronous_sweep_killed_anywhere_loses_and_repeats_nothing(
    database: Database, tmp_path: Path, crash_after: int
) -> None:
    experiment_id = submit(database, sweep_document(num_trials=4))
    play(take_over(database, tmp_path, experiment_id), max_calls=crash_after)
    with database.read() as work:
        before = {trial.number: trial for trial in work.trials.history(experiment_id)}
    play(take_over(database, tmp_path, experiment_id))
    with database.read() as work:
        after = {trial.number: trial for trial in work.trials.history(experiment_id)}
        state = work.experiments.get(experiment_id).state
    assert state is ExperimentState.COMPLETED
    assert sorted(after) == [0, 1, 2, 3]
    for number, trial in before.items():
        assert after[number].params == trial.params
        assert after[number].rungs[: len(trial.rungs)] == trial.rungs
        if trial.finished_at_ms is not None:
            assert after[number] == trial


def test_I7_order_of_arrival_gives_every_proposal_and_decision_again(database: Database, tmp_path: Path) -> None:
    document = sweep_document(num_trials=9, num_steps=24, sampler={"kind": "tpe", "num_startup_trials": 3})
    experiment_id = submit(database, document)
    play(take_over(database, tmp_path, experiment_id), max_calls=21)
    play(take_over(database, tmp_path, experiment_id, max_concurrent=3))
    with database.read() as work:
        trials = work.trials.history(experiment_id)
    spec = ExperimentSpec.model_validate(document)
    assert {rung.decision for trial in trials for rung in trial.rungs} == {RungDecision.CONTINUE, RungDecision.STOP}
    assert list(not_replayed(spec, trials)) == []
    # It would be seen: had the last trial been asked for before what it knows had happened, it would be another one.
    *others, last = trials
    earlier = replace(last, asked_sequence=others[3].asked_sequence)
    assert len(list(not_replayed(spec, [*others, earlier]))) == 1


@pytest.mark.parametrize("crash_after", range(2, 38, 5))
def test_I5_I7_synchronous_sweep_killed_anywhere_gives_the_same_table(
    database: Database, tmp_path: Path, crash_after: int
) -> None:
    document = sweep_document(
        num_trials=5,
        batch_size=3,
        synchronous=True,
        sampler={"kind": "tpe", "num_startup_trials": 2},
        baselines=[{"name": "dense", "set": {"model.moe": None}}],
    )
    undisturbed = submit(database, document)
    play(take_over(database, tmp_path, undisturbed, max_concurrent=1))
    killed = submit(database, document)
    play(take_over(database, tmp_path, killed), max_calls=crash_after)
    play(take_over(database, tmp_path, killed), max_calls=crash_after)
    play(take_over(database, tmp_path, killed, max_concurrent=3))
    assert table(database, killed) == table(database, undisturbed)


def test_I7_batch_is_decided_only_when_it_is_there_as_a_whole(database: Database, tmp_path: Path) -> None:
    document = sweep_document(num_trials=4, batch_size=4, synchronous=True)
    experiment_id = submit(database, document)
    conductor = take_over(database, tmp_path, experiment_id, max_concurrent=1)
    play(conductor, max_calls=20)
    with database.read() as work:
        trials = work.trials.history(experiment_id)
    assert len(trials) == 4
    first_rung = [trial.rungs[0] for trial in trials if trial.rungs]
    decided = [rung for rung in first_rung if rung.decision is not None]
    assert decided in ([], first_rung)
    assert not decided or len(first_rung) == 4


def test_cancel_stops_runs_and_proposes_nothing_more(database: Database, tmp_path: Path) -> None:
    experiment_id = submit(database, sweep_document())
    conductor = take_over(database, tmp_path, experiment_id)
    request = started(conductor)
    with database.transaction() as work:
        work.experiments.request_cancel(experiment_id)
    assert conductor.watch(ttl_s=15) is ExperimentState.CANCELLING
    conductor.stop(Stopping.CANCEL)
    assert (Path(request.folder) / "stop").exists()
    assert conductor.next_run() is Next.FINISHED
    conductor.report(request.run_id, RunReport(kind="stopped", step=5, tokens=640))
    conductor.settle()
    with database.read() as work:
        assert work.experiments.get(experiment_id).state is ExperimentState.CANCELLED
        assert [trial.state for trial in work.trials.history(experiment_id)] == [TrialState.CANCELLED]
        assert [run.state for run in work.runs.of_experiment(experiment_id)] == [RunState.CANCELLED]


def test_shutdown_leaves_the_experiment_to_the_next_driver_at_no_cost(database: Database, tmp_path: Path) -> None:
    experiment_id = submit(database, sweep_document(num_trials=2, max_retries=0))
    conductor = take_over(database, tmp_path, experiment_id)
    request = started(conductor)
    conductor.stop(Stopping.SHUTDOWN)
    conductor.report(request.run_id, RunReport(kind="stopped", step=5, tokens=640))
    conductor.settle()
    with database.read() as work:
        assert work.experiments.claimable() == (experiment_id,)
        assert work.trials.history(experiment_id)[0].state is TrialState.RETRYING
    play(take_over(database, tmp_path, experiment_id))
    with database.read() as work:
        assert work.experiments.get(experiment_id).state is ExperimentState.COMPLETED


def test_spikes_become_events_once(database: Database, tmp_path: Path) -> None:
    experiment_id = submit(database, sweep_document(num_trials=1))
    conductor = take_over(database, tmp_path, experiment_id)
    folder = Path(started(conductor).folder)
    folder.mkdir(parents=True)
    (folder / "spikes.jsonl").write_text('{"step": 3, "metric": "train/loss"}\n{"step": 9, "met')
    conductor.watch(ttl_s=15)
    (folder / "spikes.jsonl").write_text('{"step": 3, "metric": "train/loss"}\n{"step": 9, "metric": "train/loss"}\n')
    conductor.watch(ttl_s=15)
    take_over(database, tmp_path, experiment_id)
    with database.read() as work:
        events = work.events.after(0, experiment_id=experiment_id)
    assert [event.data["step"] for event in events if event.kind == "spike"] == [3, 9]


def test_objective_is_the_one_that_the_script_reports(database: Database, tmp_path: Path) -> None:
    experiment_id = submit(database, sweep_document(num_trials=1, scheduler={"kind": "none"}))
    conductor = take_over(database, tmp_path, experiment_id)
    request = conductor.next_run()
    assert isinstance(request, RunRequest)
    with database.read() as work:
        trial = work.trials.history(experiment_id)[0]
    play(take_over(database, tmp_path, experiment_id))
    with database.read() as work:
        settled = work.trials.get(trial.id)
    assert settled.objective == scripted_value(request, request.config.loop.budget_tokens)
    assert settled.summary is not None
    assert settled.summary["bits_per_byte"] == {"all": settled.objective}


def test_alarms_become_events_once(database: Database, tmp_path: Path) -> None:
    experiment_id = submit(database, sweep_document(num_trials=1))
    conductor = take_over(database, tmp_path, experiment_id)
    folder = Path(started(conductor).folder)
    folder.mkdir(parents=True)
    (folder / "alarms.jsonl").write_text('{"step": 3, "change": "raised"}\n{"step": 9, "chan')
    conductor.watch(ttl_s=15)
    (folder / "alarms.jsonl").write_text('{"step": 3, "change": "raised"}\n{"step": 9, "change": "cleared"}\n')
    conductor.watch(ttl_s=15)
    take_over(database, tmp_path, experiment_id)
    with database.read() as work:
        events = work.events.after(0, experiment_id=experiment_id)
    assert [event.data["change"] for event in events if event.kind == "alarm"] == ["raised", "cleared"]


@pytest.mark.parametrize("shutting_down", [False, True])
def test_run_that_a_rule_stopped_prunes_its_trial_once(database: Database, tmp_path: Path, shutting_down: bool) -> None:
    experiment_id = submit(database, sweep_document(num_trials=1, max_retries=0))
    conductor = take_over(database, tmp_path, experiment_id)
    request = started(conductor)
    if shutting_down:
        conductor.stop(Stopping.SHUTDOWN)
    said = RunReport(
        kind="stopped",
        step=5,
        tokens=640,
        cause="stop_rule",
        message="collapse: router/max_load of layer 1 >= 0.45 since step 3, now 0.5",
        evaluation={"all": DomainEvaluation(bits_per_byte=3.25, loss=4.0)},
    )
    conductor.report(request.run_id, said)
    assert not conductor.report(request.run_id, said), "a second report of the same end is refused"
    with database.read() as work:
        (trial,) = work.trials.history(experiment_id)
        (run,) = work.runs.of_trial(trial.id)
    assert (trial.state, trial.cause, trial.reason) == (TrialState.PRUNED, Cause.STOP_RULE, said.message)
    assert (trial.objective, trial.objective_tokens) == (3.25, 640)
    assert (run.state, run.cause) == (RunState.PRUNED, Cause.STOP_RULE)
    if not shutting_down:
        assert conductor.next_run() is Next.FINISHED
