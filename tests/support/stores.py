"""Databases for tests: migrated, on the engines we promise, with clocks that only the test moves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.search.space import resolve
from orchestrator.spec import ExperimentSpec
from orchestrator.store.clock import LeaseTime
from orchestrator.store.records import Proposal, RunRecord, TrialRecord
from orchestrator.store.session import Database
from tests.support.specs import experiment_document, experiment_spec

LEARNING_RATE = 0.001


@dataclass
class FakeLeaseClock:
    """A lease clock that stands still until it is moved."""

    boot_id: str = "boot-1"
    ms: int = 0

    def __call__(self) -> LeaseTime:
        return LeaseTime(self.boot_id, self.ms)


def submitted(database: Database, **fields: Any) -> str:
    """Submits an experiment and returns its id."""
    with database.transaction() as work:
        submission = work.experiments.submit(experiment_spec(**fields), document=experiment_document(**fields))
    return submission.experiment.id


def claimed(database: Database, **fields: Any) -> tuple[str, int]:
    """Submits and claims an experiment; returns its id and epoch."""
    experiment_id = submitted(database, **fields)
    with database.transaction() as work:
        epoch = work.experiments.claim(experiment_id, owner="test", ttl_s=15)
    assert epoch is not None
    return experiment_id, epoch


def chooser(spec: ExperimentSpec) -> Callable[[int, object], Proposal]:
    """Proposes one and the same valid point."""
    params = dict.fromkeys(spec.space, LEARNING_RATE)
    return lambda number, history: Proposal(params=dict(params), config=resolve(spec, params))


def proposed(database: Database, experiment_id: str, epoch: int) -> TrialRecord:
    """Proposes a trial and returns it."""
    with database.transaction() as work:
        spec = ExperimentSpec.model_validate(work.experiments.get(experiment_id).spec)
        trial = work.trials.propose(experiment_id, epoch=epoch, choose=chooser(spec))
    assert trial is not None
    return trial


def started(database: Database, trial_id: str, epoch: int) -> RunRecord:
    """Starts a run of a trial, with its worker training, and returns it."""
    with database.transaction() as work:
        run = work.runs.start(trial_id, epoch=epoch)
        return work.runs.running(run.id, epoch=epoch)
