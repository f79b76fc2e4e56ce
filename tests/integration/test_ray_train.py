"""A trial of two workers through Ray Train."""

import os
import signal

import numpy as np
import pytest

from orchestrator.states import RunState, TrialState
from orchestrator.tracking.chunks import columns
from tests.support.services import Installation, wait_until
from tests.support.sweeps import sweep_document
from tests.support.training import STEP_TOKENS

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(280)]


def test_two_workers_give_the_losses_and_loads_of_one(installation: Installation) -> None:
    one = sweep_document(num_trials=1, num_steps=20, scheduler={"kind": "none"})
    experiments = [installation.submit(document) for document in (one, one | {"resources": {"num_workers": 2}})]
    for experiment_id in experiments:
        installation.drive(experiment_id)
    tables = []
    for experiment_id in experiments:
        with installation.database.read() as work:
            (trial,) = work.trials.history(experiment_id)
            (run,) = work.runs.of_trial(trial.id)
        assert trial.state is TrialState.COMPLETED, trial.reason
        assert run.environment is not None
        folder = [installation.root / run.folder]
        scalars = columns(folder, "scalars", ["train/loss", "optimizer/grad_norm"])
        tables.append((trial, run, scalars, columns(folder, "router", ["router/load"])))
    (trial, run, scalars, router), (trials, runs, scalars_two, router_two) = tables
    assert (run.environment["world_size"], runs.environment["world_size"]) == (1, 2)
    # The same sums in another order: float32 rounding, which 20 steps of training let grow a little.
    np.testing.assert_allclose(scalars_two["train/loss"], scalars["train/loss"], rtol=1e-4)
    np.testing.assert_allclose(scalars_two["optimizer/grad_norm"], scalars["optimizer/grad_norm"], rtol=1e-2)
    assert trials.objective == pytest.approx(trial.objective, rel=1e-4)
    # Counts are of the whole step, over ranks; only a token whose two best experts are near equal may go elsewhere.
    np.testing.assert_array_equal(router_two["router/load"].sum(axis=1), router["router/load"].sum(axis=1))
    moved = np.abs(router_two["router/load"].astype(int) - router["router/load"].astype(int)).sum()
    assert moved <= 0.01 * router["router/load"].sum()
    wait_until(lambda: not installation.workers(), what="the end of the workers")


def test_killed_rank_and_launcher_are_retried_and_ended_ones_give_their_places_back(installation: Installation) -> None:
    document = sweep_document(
        num_trials=None,
        num_steps=400,
        sampler={"kind": "grid"},
        space={"optimizer.lr": {"choice": [0.005, 0.0001, 0.01]}},
        resources={"num_workers": 2},
        scheduler={"kind": "asha", "min_tokens": 100 * STEP_TOKENS, "reduction_factor": 4},
    )
    experiment_id = installation.submit(document)
    driver = installation.start_driver(experiment_id)
    wait_until(lambda: installation.events(experiment_id, "checkpoint.committed"), what="a checkpoint")
    ranks = [process for process in installation.workers() if "RayTrainWorker" in " ".join(process.cmdline())]
    assert len(ranks) == 2
    os.kill(ranks[1].pid, signal.SIGKILL)

    def trials_with_checkpoints() -> set[str]:
        return {event.trial_id for event in installation.events(experiment_id, "checkpoint.committed")}

    wait_until(lambda: len(trials_with_checkpoints()) == 3, what="a checkpoint of the third trial")
    launchers = [process for process in installation.workers() if "ImplicitFunc" in " ".join(process.cmdline())]
    os.kill(max(launchers, key=lambda process: process.create_time()).pid, signal.SIGKILL)
    installation.finish(driver, experiment_id)

    with installation.database.read() as work:
        trials = work.trials.history(experiment_id)
        runs = [work.runs.of_trial(trial.id) for trial in trials]
    # Only one trial fits at a time, so the third has run on the places of the pruned second, and then on those that its
    # killed launcher had asked for.
    states = [trial.state for trial in trials]
    assert states == [TrialState.COMPLETED, TrialState.PRUNED, TrialState.COMPLETED], [trial.reason for trial in trials]
    assert [run.state for run in runs[0]] == [RunState.LOST, RunState.COMPLETED]
    assert [run.state for run in runs[2]] == [RunState.LOST, RunState.COMPLETED]
    assert all((of_trial[1].resumed_from_step or 0) >= 100 for of_trial in (runs[0], runs[2]))
    wait_until(lambda: not installation.workers(), what="the end of the workers")
