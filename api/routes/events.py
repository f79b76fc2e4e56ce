"""The history of an experiment, as pages and as a stream of server-sent events."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool

from api.dependencies import DatabaseOf, SettingsOf
from api.problems import NOT_FOUND, TOO_MANY_STREAMS, RequestRefused, problems
from api.schemas.events import Event, EventPage
from orchestrator.errors import StoreUnavailable
from orchestrator.states import is_terminal
from orchestrator.store.session import Database

router = APIRouter(tags=["events"])

MAX_STREAMS = 50
PAGE = 200


@router.get(
    "/experiments/{experiment_id}/events",
    operation_id="list_events",
    response_model=EventPage,
    responses={
        200: {
            "description": "A page; with `Accept: text/event-stream` a stream that ends with the experiment",
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
    after: Annotated[int, Query(ge=0, le=2**53, description="Only events with a larger id.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = PAGE,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", max_length=15, pattern=r"^\d*$")] = None,
) -> EventPage | Response:
    """What happened, oldest first. As a stream: the event's id is the SSE id, and Last-Event-ID goes on after it."""
    start = int(last_event_id) if last_event_id else after
    page = await run_in_threadpool(read_page, database, experiment_id, after=start, limit=limit)
    if "text/event-stream" not in accept:
        return page
    streams: set[int] = request.app.state.streams
    if len(streams) >= MAX_STREAMS:
        raise RequestRefused(
            TOO_MANY_STREAMS, f"{MAX_STREAMS} event streams are open; close one or poll", headers={"Retry-After": "5"}
        )

    async def counted() -> AsyncIterator[bytes]:
        streams.add(id(request))
        try:
            stream = follow(
                database, experiment_id, page=page, poll_s=settings.poll_s, heartbeat_s=settings.heartbeat_s
            )
            async for part in stream:
                yield part
        finally:
            streams.discard(id(request))

    return EventSourceResponse(counted(), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


def read_page(database: Database, experiment_id: str, *, after: int, limit: int) -> EventPage:
    """The events of an experiment after a given one; raises NotFound."""
    with database.read() as work:
        # The state first: an experiment that is over here has all its events in the same snapshot.
        state = work.experiments.get(experiment_id).state
        records = work.events.after(after, experiment_id=experiment_id, limit=limit)
    items = [
        Event(
            id=record.id,
            at_ms=record.at_ms,
            kind=record.kind,
            experiment_id=record.experiment_id,
            trial_id=record.trial_id,
            run_id=record.run_id,
            data=record.data,
        )
        for record in records
    ]
    return EventPage(
        items=items,
        next_after=items[-1].id if items else after,
        finished=is_terminal(state) and len(items) < limit,
    )


async def follow(
    database: Database, experiment_id: str, *, page: EventPage, poll_s: float, heartbeat_s: float
) -> AsyncIterator[bytes]:
    """The stream from `page` on: one SSE event each, a comment every idle `heartbeat_s`, and `end` at the end."""
    loop = asyncio.get_running_loop()
    last_sent_s = loop.time()
    while True:
        for event in page.items:
            yield format_sse_event(data_str=event.model_dump_json(), event=event.kind, id=str(event.id))
            last_sent_s = loop.time()
        if page.finished:
            yield format_sse_event(data_str="{}", event="end")
            return
        if len(page.items) == 0:
            if loop.time() - last_sent_s >= heartbeat_s:
                yield KEEPALIVE_COMMENT
                last_sent_s = loop.time()
            await asyncio.sleep(poll_s)
        try:
            page = await run_in_threadpool(read_page, database, experiment_id, after=page.next_after, limit=PAGE)
        except StoreUnavailable:
            # The client comes back with Last-Event-ID, and gets a 503 if it still is.
            return
