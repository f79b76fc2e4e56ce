"""Telemetry of trials: series, router health, loads, spikes, evaluations."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from api.dependencies import DatabaseOf, SettingsOf
from api.problems import NOT_FOUND, problems
from api.schemas.router import RouterGrid, RouterLoads
from api.schemas.series import EvaluationList, Series, SeriesRequest, SpikeList, X
from api.schemas.wire import shown_as

router = APIRouter(tags=["telemetry"])

Points = Annotated[int, Query(ge=2, le=2000, description="Buckets of the grid.")]
Keys = Annotated[list[str] | None, Query(max_length=20, description="Router metrics; all of them if left out.")]


@router.post("/series:query", operation_id="query_series", responses=problems(NOT_FOUND))
def query_series(request: SeriesRequest, database: DatabaseOf, settings: SettingsOf) -> Series:
    """Metrics of several trials or runs on one common grid: minimum, last value and maximum of each bucket."""
    raise NotImplementedError


@router.get("/trials/{trial_id}/router", operation_id="get_router", responses=problems(NOT_FOUND))
def get_router(
    trial_id: str,
    database: DatabaseOf,
    settings: SettingsOf,
    keys: Keys = None,
    x: X = "step",
    points: Points = 200,
) -> RouterGrid:
    """Router metrics of every MoE layer over training; a dense model has no layers here."""
    raise NotImplementedError


@router.get("/trials/{trial_id}/router/loads", operation_id="get_router_loads", responses=problems(NOT_FOUND))
def get_router_loads(
    trial_id: str,
    database: DatabaseOf,
    settings: SettingsOf,
    step: Annotated[int | None, Query(ge=1, description="The newest recorded step if left out.")] = None,
) -> RouterLoads:
    """Exact tokens per expert and layer in one optimizer step."""
    raise NotImplementedError


@router.get(
    "/trials/{trial_id}/router/load-history",
    operation_id="get_load_history",
    response_class=Response,
    responses={
        200: {
            "description": "uint32 little-endian n, n bytes of LoadHistoryMeta as JSON, then one byte per frame, layer, expert",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        **problems(NOT_FOUND),
    },
)
def get_load_history(trial_id: str, database: DatabaseOf, settings: SettingsOf, frames: Points = 300) -> Response:
    """Loads relative to a fair share over all of training, one byte each; see LoadHistoryMeta."""
    raise NotImplementedError


@router.get("/trials/{trial_id}/spikes", operation_id="list_spikes", responses=problems(NOT_FOUND))
def list_spikes(trial_id: str, database: DatabaseOf, settings: SettingsOf) -> SpikeList:
    """Loss and gradient spikes with the router's state before, at and after."""
    raise NotImplementedError


@router.get("/trials/{trial_id}/evaluations", operation_id="list_evaluations", responses=problems(NOT_FOUND))
def list_evaluations(trial_id: str, database: DatabaseOf, settings: SettingsOf) -> EvaluationList:
    """Held-out bits per byte and loss per corpus at every evaluation."""
    raise NotImplementedError
