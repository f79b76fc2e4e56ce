"""Processes of this installation and their health."""

from typing import Any, Literal

from api.schemas.wire import Answer, EpochMs


class ServiceRead(Answer):
    """One process as it last reported."""

    name: str
    pid: int | None
    url: str | None
    state: Literal["starting", "ready", "failed", "stopped"]
    detail: dict[str, Any]
    heartbeat_ms: EpochMs
    stale: bool
    """It has not reported for so long that it is probably gone."""


class ServiceList(Answer):
    """All processes that ever reported."""

    items: list[ServiceRead]


class Liveness(Answer):
    """This process answers."""

    status: Literal["ok"]


class ServiceHealth(Answer):
    """One thing that readiness depends on."""

    name: str
    state: Literal["starting", "ready", "failed", "stopped", "missing"]
    detail: str


class Readiness(Answer):
    """Whether experiments can be submitted and will run."""

    status: Literal["ready", "not_ready"]
    services: list[ServiceHealth]
