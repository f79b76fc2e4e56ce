"""The append-only history: every change of state, arrival, decision and checkpoint, in one order."""

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select, text

from orchestrator.store.finite import finite_json
from orchestrator.store.models import EventRow
from orchestrator.store.paging import check_limit
from orchestrator.store.records import EventRecord
from orchestrator.store.repository import Repository, table_of

if TYPE_CHECKING:
    from orchestrator.store.work import Work

# Any number that nothing else in the database locks.
_APPEND_LOCK = 0x65766E
_APPEND = insert(table_of(EventRow))


class Events(Repository):
    """Writes and reads events. What is added is written together, at the latest before the commit."""

    def __init__(self, work: "Work") -> None:
        super().__init__(work)
        self._added: list[dict[str, Any]] = []

    def add(
        self,
        kind: str,
        *,
        data: dict[str, Any],
        experiment_id: str | None = None,
        trial_id: str | None = None,
        run_id: str | None = None,
    ) -> None:
        """Appends an event to the current transaction."""
        self._added.append(
            {
                "at_ms": self._now(),
                "kind": kind,
                "experiment_id": experiment_id,
                "trial_id": trial_id,
                "run_id": run_id,
                "data": finite_json(data),
            }
        )

    def flush(self) -> None:
        """Writes what was added, in that order."""
        if not self._added:
            return
        if self._connection.dialect.name == "postgresql":
            # Sequences count up before the commit; without this lock a reader could see event 8 before event 7 and
            # never ask for 7 again. It is the last lock a transaction takes, and goes with its end.
            self._connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _APPEND_LOCK})
        added, self._added = self._added, []
        self._connection.execute(_APPEND, added)

    def after(self, event_id: int, *, experiment_id: str | None = None, limit: int = 500) -> tuple[EventRecord, ...]:
        """The first `limit` events with an id above `event_id`, oldest first; of one experiment if it is named."""
        self.flush()
        query = select(*EventRow.__table__.columns).where(EventRow.id > event_id)
        if experiment_id is not None:
            query = query.where(EventRow.experiment_id == experiment_id)
        rows = self._connection.execute(query.order_by(EventRow.id).limit(check_limit(limit))).mappings()
        return tuple(EventRecord(**row) for row in rows)

    def count(self, kind: str, *, run_id: str) -> int:
        """How many events of one kind a run has."""
        self.flush()
        return self._connection.execute(
            select(func.count()).select_from(EventRow).where(EventRow.kind == kind, EventRow.run_id == run_id)
        ).scalar_one()

    def of_trial(self, kind: str, *, trial_id: str) -> tuple[EventRecord, ...]:
        """The events of one kind of a trial, oldest first."""
        self.flush()
        query = select(*EventRow.__table__.columns).where(EventRow.kind == kind, EventRow.trial_id == trial_id)
        return tuple(EventRecord(**row) for row in self._connection.execute(query.order_by(EventRow.id)).mappings())

    def trials_with(self, kind: str, *, experiment_id: str) -> tuple[str, ...]:
        """Ids of the trials of an experiment that have an event of a kind, in order of its first."""
        self.flush()
        query = (
            select(EventRow.trial_id)
            .where(EventRow.experiment_id == experiment_id, EventRow.kind == kind, EventRow.trial_id.is_not(None))
            .group_by(EventRow.trial_id)
            .order_by(func.min(EventRow.id))
        )
        return tuple(str(trial_id) for trial_id in self._connection.execute(query).scalars())

    def last_id(self) -> int:
        """The id of the newest event, 0 if there is none."""
        self.flush()
        return self._connection.execute(select(func.coalesce(func.max(EventRow.id), 0))).scalar_one()
