"""Who may drive an experiment: one epoch at a time, and nothing written under an old one."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.errors import Fenced
from orchestrator.states import ExperimentState, RunState, TrialState
from orchestrator.store.records import Decision, RungDecision
from orchestrator.store.session import Database, open_database
from orchestrator.store.work import Work
from tests.support.specs import experiment_spec
from tests.support.stores import FakeLeaseClock, chooser, claimed, proposed, started, submitted


def claim(database: Database, experiment_id: str, owner: str = "me") -> int | None:
    with database.transaction() as work:
        return work.experiments.claim(experiment_id, owner=owner, ttl_s=15)


def test_claim_makes_a_queued_experiment_run_under_epoch_one(database: Database) -> None:
    experiment_id = submitted(database)
    with database.read() as work:
        assert work.experiments.claimable() == (experiment_id,)
    assert claim(database, experiment_id) == 1
    with database.read() as work:
        record = work.experiments.get(experiment_id)
        assert (record.state, record.epoch, record.lease_owner) == (ExperimentState.RUNNING, 1, "me")
        assert work.experiments.claimable() == ()


def test_I2_of_many_claimers_at_once_one_gets_the_epoch(database_url: str, database: Database) -> None:
    experiment_id = submitted(database)
    others = [open_database(database_url) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        epochs = list(pool.map(lambda index: claim(others[index % 4], experiment_id, f"claimer {index}"), range(16)))
    for other in others:
        other.close()
    assert sorted(epoch for epoch in epochs if epoch is not None) == [1]


def test_live_lease_is_not_taken(database: Database, lease_clock: FakeLeaseClock) -> None:
    experiment_id, epoch = claimed(database)
    lease_clock.ms += 14_000
    assert claim(database, experiment_id) is None
    with database.transaction() as work:
        work.experiments.renew(experiment_id, epoch=epoch, ttl_s=15)
    lease_clock.ms += 14_000
    assert claim(database, experiment_id) is None


@pytest.mark.parametrize("death", ["expired", "rebooted", "released", "the clock went back by a day"])
def test_dead_lease_is_taken_over_with_the_next_epoch(
    database: Database, lease_clock: FakeLeaseClock, death: str
) -> None:
    experiment_id, epoch = claimed(database)
    if death == "expired":
        lease_clock.ms += 15_000
    elif death == "rebooted":
        lease_clock.boot_id = "boot-2"
    elif death == "the clock went back by a day":
        lease_clock.ms -= 86_400_000
    else:
        with database.transaction() as work:
            work.experiments.release(experiment_id, epoch=epoch)
    with database.read() as work:
        assert work.experiments.claimable() == (experiment_id,)
    assert claim(database, experiment_id) == epoch + 1


def test_lease_on_the_databases_own_clock_lives_and_dies(database_url: str) -> None:
    database = open_database(database_url)
    experiment_id = submitted(database)
    with database.transaction() as work:
        assert work.experiments.claim(experiment_id, owner="a", ttl_s=60) == 1
        assert work.experiments.claim(experiment_id, owner="b", ttl_s=60) is None
        work.experiments.renew(experiment_id, epoch=1, ttl_s=-1)
        assert work.experiments.claim(experiment_id, owner="b", ttl_s=60) == 2
    database.close()


DRIVER_WRITES: dict[str, Callable[[Work, str, str, str, int], object]] = {
    "renew": lambda work, exp, trial, run, epoch: work.experiments.renew(exp, epoch=epoch, ttl_s=9),
    "release": lambda work, exp, trial, run, epoch: work.experiments.release(exp, epoch=epoch),
    "settle experiment": lambda work, exp, trial, run, epoch: work.experiments.settle(
        exp, epoch=epoch, state=ExperimentState.FAILED
    ),
    "propose": lambda work, exp, trial, run, epoch: work.trials.propose(
        exp, epoch=epoch, choose=chooser(experiment_spec())
    ),
    "lose runs": lambda work, exp, trial, run, epoch: work.trials.lose_runs(exp, epoch=epoch, reason=""),
    "settle trial": lambda work, exp, trial, run, epoch: work.trials.settle(
        trial, epoch=epoch, state=TrialState.FAILED
    ),
    "start": lambda work, exp, trial, run, epoch: work.runs.start(trial, epoch=epoch),
    "running": lambda work, exp, trial, run, epoch: work.runs.running(run, epoch=epoch),
    "progress": lambda work, exp, trial, run, epoch: work.runs.progress(run, epoch=epoch, progress={"step": 1}),
    "settle run": lambda work, exp, trial, run, epoch: work.runs.settle(run, epoch=epoch, state=RunState.FAILED),
    "rung": lambda work, exp, trial, run, epoch: work.rungs.record(
        run,
        epoch=epoch,
        rung=0,
        tokens=1,
        value=1.0,
        decide=lambda value, earlier: Decision(decision=RungDecision.STOP, explanation=""),
    ),
    "decide": lambda work, exp, trial, run, epoch: work.rungs.decide(
        trial, 0, Decision(decision=RungDecision.STOP, explanation=""), epoch=epoch
    ),
    "checkpoint": lambda work, exp, trial, run, epoch: work.checkpoints.commit(
        run, epoch=epoch, step=1, tokens=1, folder="x", manifest_sha256="0" * 64
    ),
}


@pytest.mark.parametrize("write", DRIVER_WRITES)
def test_I2_every_write_of_a_driver_that_was_taken_over_is_refused(
    database: Database, lease_clock: FakeLeaseClock, write: str
) -> None:
    experiment_id, epoch = claimed(database)
    trial = proposed(database, experiment_id, epoch)
    run = started(database, trial.id, epoch)
    lease_clock.ms += 15_000
    claim(database, experiment_id)
    with database.read() as work:
        before = (work.experiments.get(experiment_id), work.trials.get(trial.id), work.events.last_id())
    with pytest.raises(Fenced, match=r"epoch 1 .* is over; the current one is 2"), database.transaction() as work:
        DRIVER_WRITES[write](work, experiment_id, trial.id, run.id, epoch)
    with database.read() as work:
        assert (work.experiments.get(experiment_id), work.trials.get(trial.id), work.events.last_id()) == before


def test_I2_run_of_an_old_epoch_cannot_report_under_the_new_one(
    database: Database, lease_clock: FakeLeaseClock
) -> None:
    experiment_id, epoch = claimed(database)
    run = started(database, proposed(database, experiment_id, epoch).id, epoch)
    lease_clock.ms += 15_000
    new_epoch = claim(database, experiment_id)
    assert new_epoch is not None
    with pytest.raises(Fenced, match="may not report"), database.transaction() as work:
        work.runs.progress(run.id, epoch=new_epoch, progress={})


def test_cancelled_experiment_without_a_driver_is_claimable_so_that_it_ends(
    database: Database, lease_clock: FakeLeaseClock
) -> None:
    experiment_id, _ = claimed(database)
    with database.transaction() as work:
        assert work.experiments.request_cancel(experiment_id).state is ExperimentState.CANCELLING
    lease_clock.ms += 15_000
    epoch = claim(database, experiment_id)
    assert epoch is not None
    with database.transaction() as work:
        work.experiments.settle(experiment_id, epoch=epoch, state=ExperimentState.CANCELLED)
    with database.read() as work:
        assert work.experiments.claimable() == ()
        assert work.commands.pending(experiment_id) == ()
