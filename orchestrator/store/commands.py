"""Commands: what users wished for, and what became of it."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, insert, select, update

from orchestrator.errors import IdempotencyKeyReused
from orchestrator.store.finite import finite_json
from orchestrator.store.models import CommandRow
from orchestrator.store.records import CommandRecord
from orchestrator.store.repository import Repository


class Commands(Repository):
    """Writes and reads commands."""

    def add(
        self,
        experiment_id: str,
        kind: str,
        payload: dict[str, Any] | None = None,
        *,
        trial_id: str | None = None,
        key: str | None = None,
        fingerprint: str | None = None,
    ) -> None:
        """Notes a wish as pending.

        Args:
            trial_id: the trial that it is about.
            key, fingerprint: as for `experiments.submit`.
        """
        self._connection.execute(
            insert(CommandRow).values(
                experiment_id=experiment_id,
                kind=kind,
                trial_id=trial_id,
                idempotency_key=key,
                idempotency_fingerprint=fingerprint,
                payload=finite_json(payload or {}),
                state="pending",
                created_at_ms=self._now(),
            )
        )
        self._note("pending", experiment_id, kind, trial_id)

    def change(self, command_id: int, payload: dict[str, Any]) -> None:
        """Makes a wish another one. The caller has locked its experiment."""
        self._connection.execute(
            update(CommandRow).where(CommandRow.id == command_id).values(payload=finite_json(payload))
        )

    def of_experiment(self, experiment_id: str) -> tuple[CommandRecord, ...]:
        """Every wish about the experiment and its trials, oldest first."""
        return self._records(CommandRow.experiment_id == experiment_id)

    def pending(
        self, experiment_id: str, kind: str | None = None, *, trial_id: str | None = None
    ) -> tuple[CommandRecord, ...]:
        """The wishes not answered yet, oldest first; of one kind, about one trial, if those are given."""
        where = [CommandRow.experiment_id == experiment_id, CommandRow.state == "pending"]
        where += [] if kind is None else [CommandRow.kind == kind]
        where += [] if trial_id is None else [CommandRow.trial_id == trial_id]
        return self._records(*where)

    def under_key(self, key: str, fingerprint: str | None) -> CommandRecord | None:
        """The wish that came under an idempotency key; raises IdempotencyKeyReused if it was another one."""
        for there in self._records(CommandRow.idempotency_key == key):
            if there.idempotency_fingerprint != fingerprint:
                raise IdempotencyKeyReused(f"key {key[:80]!r} was used for another request before; take a new key")
            return there
        return None

    def settle(
        self,
        experiment_id: str,
        kinds: str | Collection[str],
        *,
        applied: bool,
        reason: str = "",
        trial_id: str | None = None,
    ) -> None:
        """Marks the pending wishes of some kinds, about one trial if it is given, as applied or rejected."""
        wanted = {kinds} if isinstance(kinds, str) else set(kinds)
        state = "applied" if applied else "rejected"
        for command in self.pending(experiment_id, trial_id=trial_id):
            if command.kind in wanted:
                self._connection.execute(
                    update(CommandRow)
                    .where(CommandRow.id == command.id)
                    .values(state=state, reason=reason, applied_at_ms=self._now())
                )
                self._note(state, experiment_id, command.kind, command.trial_id, reason)

    def _note(self, state: str, experiment_id: str, kind: str, trial_id: str | None, reason: str = "") -> None:
        self._work.events.add(
            f"command.{state}",
            experiment_id=experiment_id,
            trial_id=trial_id,
            data={"kind": kind} | ({"reason": reason} if reason else {}),
        )

    def _records(self, *where: ColumnElement[bool]) -> tuple[CommandRecord, ...]:
        rows = self._connection.execute(
            select(*CommandRow.__table__.columns).where(*where).order_by(CommandRow.id)
        ).mappings()
        return tuple(CommandRecord(**row) for row in rows)
