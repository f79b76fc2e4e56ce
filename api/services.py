"""What the services' last reports say about them now."""

from typing import Literal, cast

from api.schemas.services import Readiness, ServiceHealth, ServiceRead
from orchestrator.errors import StoreUnavailable
from orchestrator.store.session import Database
from orchestrator.store.work import Work

STALE_S = 20.0
"""The orchestrator reports every few seconds; one that has been silent for so long hangs or is gone."""

REQUIRED = ("orchestrator", "ray", "mlflow")
"""What has to be ready so that an experiment runs and is recorded."""

State = Literal["starting", "ready", "failed", "stopped"]


def service_rows(work: Work) -> list[ServiceRead]:
    """Every service that ever reported, by name."""
    now_ms = work.clock()
    return [
        ServiceRead(
            name=record.name,
            pid=record.pid,
            url=record.url,
            state=cast(State, record.state),
            detail=record.detail,
            heartbeat_ms=record.heartbeat_ms,
            stale=now_ms - record.heartbeat_ms > STALE_S * 1000,
        )
        for record in work.services.list()
    ]


def readiness(database: Database) -> Readiness:
    """The state of the database and of every required service; it raises nothing."""
    try:
        with database.read() as work:
            rows = {row.name: row for row in service_rows(work)}
    except StoreUnavailable as error:
        database_health = ServiceHealth(name="database", state="failed", detail=str(error))
        return Readiness(status="not_ready", services=[database_health])
    services = [ServiceHealth(name="database", state="ready", detail="")]
    services += [_health(name, rows.get(name)) for name in REQUIRED]
    is_ready = all(service.state == "ready" for service in services)
    return Readiness(status="ready" if is_ready else "not_ready", services=services)


def _health(name: str, row: ServiceRead | None) -> ServiceHealth:
    if row is None:
        return ServiceHealth(name=name, state="missing", detail="it has not reported yet")
    if row.stale:
        return ServiceHealth(name=name, state="missing", detail=f"no report for more than {STALE_S:g} s")
    return ServiceHealth(name=name, state=row.state, detail=str(row.detail.get("message", "")))
