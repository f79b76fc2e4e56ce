"""The history of an experiment, as pages and as a stream of server-sent events."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from api.dependencies import DatabaseOf, SettingsOf
from api.problems import NOT_FOUND, TOO_MANY_STREAMS, problems
from api.schemas.events import EventPage

router = APIRouter(tags=["events"])


@router.get(
    "/experiments/{experiment_id}/events",
    operation_id="list_events",
    response_model=EventPage,
    responses={
        200: {
            "description": "A page of events; with `Accept: text/event-stream` a stream of them that ends with the experiment",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **problems(NOT_FOUND, TOO_MANY_STREAMS),
    },
)
async def list_events(
    experiment_id: str,
    request: Request,
    database: DatabaseOf,
    settings: SettingsOf,
    after: Annotated[int, Query(ge=0, description="Only events with a larger id.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", max_length=20, pattern=r"^\d*$")] = None,
) -> EventPage | Response:
    """What happened, oldest first. As a stream: the event's id is the SSE id, and Last-Event-ID goes on after it."""
    raise NotImplementedError
