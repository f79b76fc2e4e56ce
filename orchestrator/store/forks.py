"""Forks: experiments that go on from a checkpoint of another one's run, and the checkpoints that this pins."""

from sqlalchemy import ColumnElement, insert, select

from orchestrator.store.models import ForkRow, TrialRow
from orchestrator.store.records import CheckpointRecord, ForkRecord
from orchestrator.store.repository import Repository


class Forks(Repository):
    """Writes and reads where experiments come from."""

    def add(self, experiment_id: str, checkpoint: CheckpointRecord, *, changes: dict[str, object]) -> ForkRecord:
        """Notes that an experiment goes on from a checkpoint. The caller holds the experiment of the checkpoint.

        Args:
            experiment_id: the fork.
            checkpoint: committed.
            changes: dotted path -> value that differs.
        """
        self._connection.execute(
            insert(ForkRow).values(
                experiment_id=experiment_id,
                trial_id=checkpoint.trial_id,
                run_id=checkpoint.run_id,
                checkpoint_id=checkpoint.id,
                step=checkpoint.step,
                changes=changes,
                at_ms=self._now(),
            )
        )
        (record,) = self._records(ForkRow.experiment_id == experiment_id)
        self._work.events.add(
            "experiment.forked",
            experiment_id=record.parent_experiment_id,
            trial_id=record.trial_id,
            run_id=record.run_id,
            data={"experiment_id": experiment_id, "checkpoint_id": checkpoint.id, "step": record.step},
        )
        return record

    def of_experiment(self, experiment_id: str) -> ForkRecord | None:
        """Where an experiment comes from; None if it is no fork."""
        records = self._records(ForkRow.experiment_id == experiment_id)
        return records[0] if records else None

    def of_trial(self, trial_id: str) -> tuple[ForkRecord, ...]:
        """The experiments forked from a trial, oldest first."""
        return self._records(ForkRow.trial_id == trial_id)

    def pinned(self, trial_id: str) -> frozenset[str]:
        """Ids of the trial's checkpoints that a fork, or another trial of its experiment, began from.

        It reads them at its start, and so does a replay.
        """
        copied = self._connection.execute(
            select(TrialRow.parent_checkpoint_id).where(TrialRow.parent_trial_id == trial_id)
        ).scalars()
        forked = [record.checkpoint_id for record in self.of_trial(trial_id)]
        return frozenset((*forked, *(checkpoint for checkpoint in copied if checkpoint is not None)))

    def _records(self, *where: ColumnElement[bool]) -> tuple[ForkRecord, ...]:
        rows = self._connection.execute(
            select(*ForkRow.__table__.columns, TrialRow.experiment_id.label("parent_experiment_id"))
            .join(TrialRow, TrialRow.id == ForkRow.trial_id)
            .where(*where)
            .order_by(ForkRow.at_ms, ForkRow.experiment_id)
        ).mappings()
        return tuple(ForkRecord(**row) for row in rows)
