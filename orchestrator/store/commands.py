"""Commands: what users wished for, and what became of it."""

from typing import Any

from sqlalchemy import insert, select, update

from orchestrator.store.finite import finite_json
from orchestrator.store.models import CommandRow
from orchestrator.store.records import CommandRecord
from orchestrator.store.repository import Repository


class Commands(Repository):
    """Writes and reads commands."""

    def add(self, experiment_id: str, kind: str, payload: dict[str, Any] | None = None) -> None:
        """Notes a wish as pending."""
        self._connection.execute(
            insert(CommandRow).values(
                experiment_id=experiment_id,
                kind=kind,
                payload=finite_json(payload or {}),
                state="pending",
                created_at_ms=self._now(),
            )
        )
        self._work.events.add("command.pending", experiment_id=experiment_id, data={"kind": kind})

    def pending(self, experiment_id: str) -> tuple[CommandRecord, ...]:
        """The wishes not answered yet, oldest first."""
        rows = self._connection.execute(
            select(*CommandRow.__table__.columns)
            .where(CommandRow.experiment_id == experiment_id, CommandRow.state == "pending")
            .order_by(CommandRow.id)
        ).mappings()
        return tuple(CommandRecord(**row) for row in rows)

    def settle(self, experiment_id: str, kind: str, *, applied: bool, reason: str = "") -> None:
        """Marks the pending wishes of one kind as applied or rejected."""
        state = "applied" if applied else "rejected"
        changed = self._connection.execute(
            update(CommandRow)
            .where(CommandRow.experiment_id == experiment_id, CommandRow.kind == kind, CommandRow.state == "pending")
            .values(state=state, reason=reason, applied_at_ms=self._now())
        ).rowcount
        if changed:
            self._work.events.add(f"command.{state}", experiment_id=experiment_id, data={"kind": kind})
