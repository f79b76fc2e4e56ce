"""Checkpoints: a checkpoint exists once its row does. Files without a row are litter, rows point to whole folders."""

from sqlalchemy import insert, select, update

from orchestrator.store.finite import finite_number
from orchestrator.store.models import CheckpointRow
from orchestrator.store.records import CheckpointRecord
from orchestrator.store.repository import Repository, missing


class Checkpoints(Repository):
    """Writes and reads checkpoint rows."""

    def commit(
        self,
        run_id: str,
        *,
        epoch: int,
        step: int,
        tokens: int,
        folder: str,
        manifest_sha256: str,
        objective: float | None = None,
    ) -> CheckpointRecord:
        """Makes a checkpoint count. The same (run, step) again returns the row that is there.

        Args:
            folder: relative to the home.
            objective: at this step, if the run was evaluated there.

        Raises:
            Fenced: `epoch` is not the current one, or the run is no longer live.
        """
        run = self._work.runs.hold_live(run_id, epoch)
        there = self._one(CheckpointRow.run_id == run_id, CheckpointRow.step == step)
        if there is not None:
            return there
        record = CheckpointRecord(
            id=self._work.ids.new("chk"),
            trial_id=run.trial_id,
            run_id=run_id,
            step=step,
            tokens=tokens,
            folder=folder,
            manifest_sha256=manifest_sha256,
            state="committed",
            at_ms=self._now(),
            objective=finite_number(objective),
        )
        self._connection.execute(insert(CheckpointRow).values(**vars(record)))
        self._work.events.add(
            "checkpoint.committed",
            experiment_id=run.experiment_id,
            trial_id=run.trial_id,
            run_id=run_id,
            data={"step": step, "tokens": tokens, "checkpoint_id": record.id},
        )
        return record

    def newest(self, trial_id: str) -> CheckpointRecord | None:
        """The trial's committed checkpoint with the most tokens, or None."""
        row = (
            self._connection.execute(
                select(*CheckpointRow.__table__.columns)
                .where(CheckpointRow.trial_id == trial_id, CheckpointRow.state == "committed")
                .order_by(CheckpointRow.tokens.desc(), CheckpointRow.id.desc())
                .limit(1)
            )
            .mappings()
            .one_or_none()
        )
        return None if row is None else CheckpointRecord(**row)

    def of_trial(self, trial_id: str) -> tuple[CheckpointRecord, ...]:
        """The trial's committed checkpoints, fewest tokens first."""
        rows = self._connection.execute(
            select(*CheckpointRow.__table__.columns)
            .where(CheckpointRow.trial_id == trial_id, CheckpointRow.state == "committed")
            .order_by(CheckpointRow.tokens, CheckpointRow.id)
        ).mappings()
        return tuple(CheckpointRecord(**row) for row in rows)

    def release(self, checkpoint_id: str, *, epoch: int) -> bool:
        """Takes a checkpoint out of use so that its files can be deleted, unless something needs it; returns whether.

        It stays if an experiment was forked from it, or if the trial has no newer one.

        Raises:
            NotFound: there is no such checkpoint.
            Fenced: `epoch` is not the current one.
        """
        record = self.get(checkpoint_id)
        self._work.experiments.hold(self._work.runs.get(record.run_id).experiment_id, epoch)
        newest = self.newest(record.trial_id)
        if newest is None or newest.id == checkpoint_id or checkpoint_id in self._work.forks.pinned(record.trial_id):
            return False
        self.discard(checkpoint_id, epoch=epoch)
        return True

    def get(self, checkpoint_id: str) -> CheckpointRecord:
        """The checkpoint, committed or not; raises NotFound."""
        record = self._one(CheckpointRow.id == checkpoint_id)
        if record is None:
            raise missing("checkpoint", checkpoint_id)
        return record

    def discard(self, checkpoint_id: str, *, epoch: int) -> None:
        """Takes a checkpoint out of use, because its files are damaged or about to be deleted.

        Raises:
            NotFound: there is no such checkpoint.
            Fenced: `epoch` is not the current one.
        """
        record = self.get(checkpoint_id)
        self._work.experiments.hold(self._work.runs.get(record.run_id).experiment_id, epoch)
        self._connection.execute(
            update(CheckpointRow).where(CheckpointRow.id == checkpoint_id).values(state="deleting")
        )

    def _one(self, *where: object) -> CheckpointRecord | None:
        row = (
            self._connection.execute(select(*CheckpointRow.__table__.columns).where(*where))  # type: ignore[arg-type]
            .mappings()
            .one_or_none()
        )
        return None if row is None else CheckpointRecord(**row)
