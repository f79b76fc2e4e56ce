"""A trial of two workers through Ray Train."""

import numpy as np
import pytest

from orchestrator.states import TrialState
from orchestrator.tracking.chunks import columns
from tests.support.services import Installation, wait_until
from tests.support.sweeps import sweep_document

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


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
