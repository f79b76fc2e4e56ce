"""Services: the processes of this installation as they last reported."""

from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update

from orchestrator.store.finite import finite_json
from orchestrator.store.models import ServiceRow
from orchestrator.store.records import ServiceRecord
from orchestrator.store.repository import Repository

_NAMED = select(*ServiceRow.__table__.columns).where(ServiceRow.name.in_(bindparam("names", expanding=True)))


class Services(Repository):
    """Writes and reads service rows."""

    def report(
        self,
        name: str,
        *,
        state: str,
        pid: int | None = None,
        url: str | None = None,
        detail: dict[str, Any] | None = None,
    ) -> None:
        """Replaces what is known of the service `name`; counts as a heartbeat."""
        self._connection.execute(delete(ServiceRow).where(ServiceRow.name == name))
        self._connection.execute(
            insert(ServiceRow).values(
                name=name, state=state, pid=pid, url=url, detail=finite_json(detail or {}), heartbeat_ms=self._now()
            )
        )

    def beat(self, name: str) -> None:
        """Notes that the service is alive."""
        self._connection.execute(update(ServiceRow).where(ServiceRow.name == name).values(heartbeat_ms=self._now()))

    def get(self, name: str) -> ServiceRecord | None:
        """The service's row, or None if it never reported."""
        row = (
            self._connection.execute(select(*ServiceRow.__table__.columns).where(ServiceRow.name == name))
            .mappings()
            .one_or_none()
        )
        return None if row is None else ServiceRecord(**row)

    def named(self, *names: str) -> dict[str, ServiceRecord]:
        """Those of the services that ever reported, by name."""
        rows = self._connection.execute(_NAMED, {"names": names}).mappings()
        return {row["name"]: ServiceRecord(**row) for row in rows}

    def list(self) -> tuple[ServiceRecord, ...]:
        """Every service that ever reported, by name."""
        rows = self._connection.execute(select(*ServiceRow.__table__.columns).order_by(ServiceRow.name)).mappings()
        return tuple(ServiceRecord(**row) for row in rows)
