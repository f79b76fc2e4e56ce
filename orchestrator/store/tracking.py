"""Tracking: how far the forwarder has brought each trial to MLflow."""

from typing import Any

from sqlalchemy import insert, or_, select, update

from orchestrator.store.finite import finite_json
from orchestrator.store.models import RunRow, TrackingRow, TrialRow
from orchestrator.store.records import TrackingRecord, TrialRecord
from orchestrator.store.repository import Repository


class Tracking(Repository):
    """Writes and reads tracking rows."""

    def get(self, trial_id: str) -> TrackingRecord | None:
        """How far the trial has come, or None if nothing of it was forwarded."""
        row = (
            self._connection.execute(select(*TrackingRow.__table__.columns).where(TrackingRow.trial_id == trial_id))
            .mappings()
            .one_or_none()
        )
        return None if row is None else TrackingRecord(**row)

    def save(
        self, trial_id: str, *, mlflow_run_id: str | None, positions: dict[str, Any], finished: bool = False
    ) -> None:
        """Notes what was forwarded and acknowledged. There is one forwarder, so the last word counts."""
        values = {
            "mlflow_run_id": mlflow_run_id,
            "positions": finite_json(positions),
            "finished": finished,
            "updated_at_ms": self._now(),
        }
        changed = self._connection.execute(
            update(TrackingRow).where(TrackingRow.trial_id == trial_id).values(**values)
        ).rowcount
        if not changed:
            self._connection.execute(insert(TrackingRow).values(trial_id=trial_id, **values))

    def open_trials(self, *, limit: int = 100) -> tuple[TrialRecord, ...]:
        """Trials that have run and are not wholly in MLflow yet, oldest first."""
        ids = self._connection.execute(
            select(TrialRow.id)
            .outerjoin(TrackingRow, TrackingRow.trial_id == TrialRow.id)
            .where(
                select(RunRow.id).where(RunRow.trial_id == TrialRow.id).exists(),
                or_(TrackingRow.finished.is_(None), TrackingRow.finished.is_(False)),
            )
            .order_by(TrialRow.created_at_ms, TrialRow.id)
            .limit(limit)
        ).scalars()
        return tuple(self._work.trials.get(trial_id) for trial_id in ids)
