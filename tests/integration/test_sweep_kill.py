"""A real sweep through Ray Tune whose driver is killed: nothing recorded is lost, decided again or run twice."""

import os
import signal

import pytest

from orchestrator.search.propose import study_of
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, ExperimentState, RunState, TrialState
from tests.support.replay import not_replayed
from tests.support.services import Installation, wait_until
from tests.support.sweeps import sweep_document, table

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(280)]


def kill_driver_after_rungs(installation: Installation, experiment_id: str, num_rungs: int) -> None:
    """Starts a driver and kills it, unasked, when so many arrivals at rungs are recorded."""
    driver = installation.start_driver(experiment_id)
    wait_until(
        lambda: len(installation.events(experiment_id, "rung.arrived")) >= num_rungs or driver.poll() is not None,
        what=f"{num_rungs} arrivals",
    )
    assert driver.poll() is None, installation.log(experiment_id).read_text()[-4000:]
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_until(lambda: not installation.workers(), what="the end of the killed driver's trials")


def test_I2_I3_I7_killed_driver_loses_no_trial_and_no_rung_and_tells_pruned_as_pruned(
    installation: Installation,
) -> None:
    document = sweep_document(num_trials=6, num_steps=48, sampler={"kind": "tpe", "num_startup_trials": 3})
    experiment_id = installation.submit(document)
    kill_driver_after_rungs(installation, experiment_id, 4)
    with installation.database.read() as work:
        before = work.trials.history(experiment_id)
        lost = {run.id for run in work.runs.live(experiment_id)}
    assert lost, "the driver was killed in mid-sweep"

    installation.drive(experiment_id)
    with installation.database.read() as work:
        after = work.trials.history(experiment_id)
        runs = work.runs.of_experiment(experiment_id)
        assert work.experiments.get(experiment_id).state is ExperimentState.COMPLETED
    assert [trial.number for trial in after] == list(range(6))
    for trial in before:
        now = after[trial.number]
        assert (now.id, now.params) == (trial.id, trial.params)
        assert now.rungs[: len(trial.rungs)] == trial.rungs
        assert trial.finished_at_ms is None or now == trial
    assert {run.id for run in runs if run.state is RunState.LOST} == lost
    resumed = {run.trial_id for run in runs if run.resumed_from_step}
    had_checkpoint = {trial.id for trial in before if trial.rungs and trial.finished_at_ms is None}
    assert resumed == had_checkpoint

    # The recorded order of arrival gives every proposal and every decision again, across the takeover, too.
    spec = ExperimentSpec.model_validate(document)
    assert list(not_replayed(spec, after)) == []

    study = study_of(spec, number=6, history=after)
    told = [trial.state.name for trial in study.trials]
    assert told == ["PRUNED" if trial.state is TrialState.PRUNED else "COMPLETE" for trial in after]
    assert "PRUNED" in told
    for trial, frozen in zip(after, study.trials, strict=True):
        assert frozen.intermediate_values == {rung.tokens: rung.value for rung in trial.rungs}


def test_I5_I7_synchronous_sweep_killed_twice_gives_the_identical_table(installation: Installation) -> None:
    document = sweep_document(num_trials=4, batch_size=2, num_steps=24, synchronous=True)
    undisturbed, killed = installation.submit(document), installation.submit(document)
    installation.drive(undisturbed)
    kill_driver_after_rungs(installation, killed, 1)
    kill_driver_after_rungs(installation, killed, 4)
    installation.drive(killed)
    assert table(installation.database, killed) == table(installation.database, undisturbed)
    assert {row[3] for row in table(installation.database, killed)} == {TrialState.COMPLETED, TrialState.PRUNED}


def test_population_goes_on_from_the_checkpoints_of_its_best(installation: Installation) -> None:
    scheduler = {"kind": "pbt", "resource": "steps", "min_resource": 8, "interval_resource": 8, "quantile": 0.5}
    space = {"optimizer.lr": {"choice": [3e-3, 1e-6]}}
    document = sweep_document(num_trials=2, num_steps=16, scheduler=scheduler, space=space, sampler={"kind": "grid"})
    experiment_id = installation.submit(document)
    installation.drive(experiment_id)
    with installation.database.read() as work:
        best, worst, copy = work.trials.history(experiment_id)
        assert work.experiments.get(experiment_id).state is ExperimentState.COMPLETED
        (run,) = work.runs.of_trial(copy.id)
    assert (worst.state, worst.cause, worst.reason) == (TrialState.PRUNED, Cause.PBT, worst.rungs[0].explanation)
    assert copy.parent_trial_id == best.id
    # It begins with what its parent had there, and trains the rest of the budget.
    assert copy.rungs[0].value == best.rungs[0].value
    assert copy.rungs[0].tokens == best.rungs[0].tokens
    assert (copy.state, copy.objective_tokens) == (TrialState.COMPLETED, best.objective_tokens)
    assert run.stop_at_tokens is None
