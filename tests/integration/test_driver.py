"""A driver and its trials' processes: exact resume after a kill, cancelling, leaving in good order, failing."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from api.comparison import comparison
from orchestrator.states import Cause, ExperimentState, RunState, TrialState
from orchestrator.tracking.chunks import columns
from orchestrator.tracking.series import RunFolder, Source
from tests.support.services import Installation, wait_until
from tests.support.sweeps import sweep_document, table
from tests.support.training import DIVERGING, STEP_TOKENS, run_training
from trainer.config import TrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(280)]

NUM_STEPS = 400
LONG = sweep_document(
    num_trials=1,
    num_steps=NUM_STEPS,
    scheduler={"kind": "none"},
    base={"loop": {"checkpoint_every_tokens": 20 * STEP_TOKENS}},
)
"""One trial of some seconds, with a checkpoint every 20 steps."""


def source(installation: Installation, experiment_id: str) -> Source:
    """The experiment's first trial, to read."""
    with installation.database.read() as work:
        runs = work.runs.of_trial(work.trials.history(experiment_id)[0].id)
    return Source(id="", runs=tuple(RunFolder(run.id, installation.root / run.folder) for run in runs))


def test_killed_process_of_a_trial_resumes_bit_exactly(installation: Installation) -> None:
    undisturbed, killed = installation.submit(LONG), installation.submit(LONG)
    installation.drive(undisturbed)

    driver = installation.start_driver(killed)
    wait_until(lambda: len(installation.events(killed, "checkpoint.committed")) >= 2, what="two checkpoints")
    (worker,) = installation.workers()
    os.kill(worker.pid, signal.SIGKILL)
    installation.finish(driver, killed)

    with installation.database.read() as work:
        (trial,) = work.trials.history(killed)
        runs = work.runs.of_trial(trial.id)
        (twin,) = work.trials.history(undisturbed)
    assert [run.state for run in runs] == [RunState.LOST, RunState.COMPLETED]
    assert trial.num_retries == 1
    assert runs[1].resumed_from_step is not None
    assert 40 <= runs[1].resumed_from_step < NUM_STEPS
    names = ["tokens", "train/loss", "train/balancing_loss", "optimizer/grad_norm"]
    resumed, reference = (columns(source(installation, id).folders, "scalars", names) for id in (killed, undisturbed))
    assert resumed["step"].tolist() == list(range(1, NUM_STEPS + 1))
    for name in names:
        np.testing.assert_array_equal(resumed[name], reference[name], err_msg=name)
    assert trial.objective == twin.objective
    assert weights(installation, killed) == weights(installation, undisturbed)


def test_trial_starts_from_a_run_of_another_experiment(installation: Installation) -> None:
    short = {"num_trials": 1, "num_steps": 8, "scheduler": {"kind": "none"}}
    pretraining = installation.submit(sweep_document(**short))
    installation.drive(pretraining)
    with installation.database.read() as work:
        (trial,) = work.trials.history(pretraining)
        (run,) = work.runs.of_trial(trial.id)
    assert trial.summary is not None

    start = {"kind": "checkpoint", "path": run.folder}
    tuning = installation.submit(sweep_document(**short, base={"start": start, "trained": "non_moe"}))
    installation.drive(tuning)
    with installation.database.read() as work:
        (tuned,) = work.trials.history(tuning)
    assert tuned.state is TrialState.COMPLETED, tuned.cause
    assert tuned.summary is not None
    assert tuned.summary["start"]["path"] == run.folder
    assert tuned.summary["initial_bits_per_byte"] == trial.summary["bits_per_byte"]


def weights(installation: Installation, experiment_id: str, number: int = 0) -> bytes:
    """The bytes of the model in a trial's last checkpoint."""
    with installation.database.read() as work:
        checkpoint = work.checkpoints.newest(work.trials.history(experiment_id)[number].id)
    assert checkpoint is not None
    return (installation.root / checkpoint.folder / "model.safetensors").read_bytes()


def test_cancel_ends_the_trials_with_a_checkpoint_and_leaves_no_process(installation: Installation) -> None:
    experiment_id = installation.submit(LONG | {"num_trials": 3, "base": long_base(20_000)})
    driver = installation.start_driver(experiment_id)
    wait_until(lambda: installation.events(experiment_id, "checkpoint.committed"), what="a checkpoint")
    with installation.database.transaction() as work:
        work.experiments.request_cancel(experiment_id)
    installation.finish(driver, experiment_id)

    with installation.database.read() as work:
        assert work.experiments.get(experiment_id).state is ExperimentState.CANCELLED
        trials = work.trials.history(experiment_id)
        assert {trial.state for trial in trials} == {TrialState.CANCELLED}
        states = {run.state for run in work.runs.of_experiment(experiment_id)}
        assert all(work.checkpoints.newest(trial.id) is not None for trial in trials)
    assert len(trials) == 2, "no trial is proposed after the cancel"
    assert states == {RunState.CANCELLED}
    wait_until(lambda: not installation.workers(), what="the end of the workers")


def test_process_that_does_not_stop_is_killed_when_its_time_is_over(installation: Installation) -> None:
    """Of one trial that is stopped, and then of an experiment that is cancelled."""
    experiment_id = installation.submit(
        LONG | {"num_trials": 2, "max_parallel_trials": 1, "max_retries": 0, "base": long_base(20_000)}
    )
    driver = installation.start_driver(experiment_id)

    def frozen_trial(number: int) -> str:
        """The trial of that number, once it has a checkpoint, with a process that answers nobody any more."""

        def saved() -> list[str]:
            return list(dict.fromkeys(e.trial_id for e in installation.events(experiment_id, "checkpoint.committed")))

        wait_until(lambda: len(saved()) > number, what=f"a checkpoint of trial {number}")
        (worker,) = installation.workers()
        os.kill(worker.pid, signal.SIGSTOP)
        return saved()[number]

    stopped = frozen_trial(0)
    installation.database.run(lambda work: work.control.stop_trial(stopped, within_s=1.0))
    cancelled = frozen_trial(1)
    installation.database.run(lambda work: work.experiments.request_cancel(experiment_id, within_s=1.0))
    installation.finish(driver, experiment_id)
    with installation.database.read() as work:
        assert work.experiments.get(experiment_id).state is ExperimentState.CANCELLED
        trials = work.trials.history(experiment_id)
    assert [trial.id for trial in trials] == [stopped, cancelled]
    assert [(trial.state, trial.cause) for trial in trials] == [
        (TrialState.PRUNED, Cause.USER),
        (TrialState.CANCELLED, Cause.USER),
    ]
    assert "killed, as it had not ended within 1 s" in trials[0].reason
    wait_until(lambda: not installation.workers(), what="the end of the workers")


def test_terminated_driver_leaves_its_trials_to_the_next_one(installation: Installation) -> None:
    experiment_id = installation.submit(LONG | {"max_retries": 0})
    driver = installation.start_driver(experiment_id)
    wait_until(lambda: installation.events(experiment_id, "checkpoint.committed"), what="a checkpoint")
    os.kill(driver.pid, signal.SIGTERM)
    installation.finish(driver, experiment_id)
    with installation.database.read() as work:
        (trial,) = work.trials.history(experiment_id)
        checkpoint = work.checkpoints.newest(trial.id)
        assert experiment_id in work.experiments.claimable()
    assert trial.state is TrialState.RETRYING
    assert checkpoint is not None

    installation.drive(experiment_id)
    with installation.database.read() as work:
        (trial,) = work.trials.history(experiment_id)
        runs = work.runs.of_trial(trial.id)
    assert trial.state is TrialState.COMPLETED
    assert runs[-1].resumed_from_step == checkpoint.step


def test_diverging_trial_fails_once_and_says_why(installation: Installation) -> None:
    document = sweep_document(num_trials=None, sampler={"kind": "grid"}, space={}, num_steps=200, base=DIVERGING)
    experiment_id = installation.submit(document | {"scheduler": {"kind": "none"}})
    installation.drive(experiment_id)
    with installation.database.read() as work:
        (trial,) = work.trials.history(experiment_id)
        runs = work.runs.of_trial(trial.id)
        experiment = work.experiments.get(experiment_id)
    assert (trial.state, trial.cause) == (TrialState.FAILED, Cause.DIVERGED)
    assert len(runs) == 1
    assert experiment.state is ExperimentState.FAILED
    assert not list(Path(installation.root).glob("**/.*.tmp-*"))


def long_base(num_steps: int) -> dict[str, object]:
    """The base of `LONG` with another number of steps."""
    document = sweep_document(num_steps=num_steps, base={"loop": {"checkpoint_every_tokens": 20 * STEP_TOKENS}})
    return document["base"]


def test_two_experiments_share_the_cluster_and_the_one_that_was_paused_comes_to_the_same_table(
    installation: Installation,
) -> None:
    document = sweep_document(num_trials=4, batch_size=2, num_steps=24, synchronous=True)
    paused, undisturbed = installation.submit(document), installation.submit(document)
    driver, other = installation.start_driver(paused), installation.start_driver(undisturbed)
    wait_until(lambda: installation.events(paused, "rung.arrived"), what="an arrival")
    with installation.database.transaction() as work:
        work.control.pause(paused)
    installation.finish(driver, paused)
    with installation.database.read() as work:
        assert work.experiments.get(paused).state is ExperimentState.PAUSED
        assert not work.runs.live(paused)
        assert paused not in work.experiments.claimable()
    with installation.database.transaction() as work:
        work.control.resume(paused)
    installation.drive(paused)
    installation.finish(other, undisturbed)
    assert table(installation.database, paused) == table(installation.database, undisturbed)

    with installation.database.read() as work:
        runs = [run for id in (paused, undisturbed) for run in work.runs.of_experiment(id)]
        assert {trial.num_retries for trial in work.trials.history(paused)} == {0}
    moments = [(run.created_at_ms, 1) for run in runs] + [(run.finished_at_ms or 0, -1) for run in runs]
    at_a_time = most = 0
    for _, change in sorted(moments):
        at_a_time += change
        most = max(most, at_a_time)
    assert most == 2, "the head has two CPUs, and each trial takes one"


PROMOTED = sweep_document(
    num_trials=None,
    num_steps=24,
    sampler={"kind": "grid"},
    space={"optimizer.lr": {"choice": [1e-5, 0.01]}},
    scheduler={"kind": "asha", "resource": "steps", "min_resource": 8, "reduction_factor": 2, "mode": "promote"},
    replicas=2,
)
"""Two points of two seeds, of which the second one learns; rungs at steps 8 and 16."""


def test_promotion_goes_on_from_checkpoints_as_if_nothing_had_been_between_and_seconds_are_rungs_too(
    installation: Installation, tmp_path: Path
) -> None:
    rungs_in_seconds = PROMOTED["scheduler"] | {"resource": "seconds", "min_resource": 0.1, "reduction_factor": 4}
    in_seconds = {"scheduler": rungs_in_seconds, "replicas": 1, "base": long_base(200)}
    promoted, timed = installation.submit(PROMOTED), installation.submit(PROMOTED | in_seconds)
    drivers = {id: installation.start_driver(id) for id in (promoted, timed)}
    for experiment_id, driver in drivers.items():
        installation.finish(driver, experiment_id)

    with installation.database.read() as work:
        trials = work.trials.history(promoted)
        runs = {trial.number: work.runs.of_trial(trial.id) for trial in trials}
        (best, other) = comparison(work, promoted).points
        in_time = work.trials.history(timed)
        timed_runs = {trial.number: work.runs.of_trial(trial.id) for trial in in_time}
    assert [(trial.point, trial.state) for trial in trials] == [
        (0, TrialState.PRUNED),
        (0, TrialState.PRUNED),
        (1, TrialState.COMPLETED),
        (1, TrialState.COMPLETED),
    ]
    for trial in trials[2:]:
        assert [run.resumed_from_step for run in runs[trial.number]] == [None, 8, 16]
        whole = run_training(TrainConfig.model_validate(trial.config), tmp_path / f"whole-{trial.number}")
        assert whole.last.evaluation is not None
        assert whole.last.checkpoint is not None
        assert trial.objective == whole.last.evaluation["all"].bits_per_byte
        model = Path(whole.last.checkpoint.folder) / "model.safetensors"
        assert weights(installation, promoted, trial.number) == model.read_bytes()
    # One decision at a rung for both seeds, by their mean.
    mean = sum(trial.rungs[0].value or 0 for trial in trials[2:]) / 2
    assert {trial.rungs[0].explanation for trial in trials[2:]} == {
        f"rank 1 of 2 at rung 0 with {mean:.4f}; the best 1 are promoted"
    }
    values = [trial.objective or 0 for trial in trials[2:]]
    assert values[0] != values[1], "the seeds differ"
    # Student's t for one degree of freedom; the standard error of two values is half their difference.
    half = 12.7062 * abs(values[0] - values[1]) / 2
    mean = sum(values) / 2
    assert (best.num_completed, other.rank) == (2, None)
    assert (best.mean, best.low, best.high) == pytest.approx((mean, mean - half, mean + half), rel=1e-4)

    assert sorted(trial.state for trial in in_time) == [TrialState.COMPLETED, TrialState.PRUNED]
    for trial in in_time:
        steps = [rung.tokens // STEP_TOKENS for rung in trial.rungs]
        assert [rung.rung for rung in trial.rungs] == list(range(len(steps)))
        assert steps, "a step takes a millisecond at least, and 200 of them more than the first rung's 0.1 s"
        resumed = [run.resumed_from_step for run in timed_runs[trial.number]]
        assert resumed == [None, *steps] if trial.state is TrialState.COMPLETED else resumed == [None, *steps[:-1]]
