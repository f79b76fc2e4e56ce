"""Telemetry of trials: series, router health, loads, spikes, evaluations."""

import struct
from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.dependencies import DatabaseOf, SettingsOf
from api.problems import NOT_FOUND, problems
from api.schemas.router import LoadHistoryMeta, RouterGrid, RouterLoads, RouterMetric
from api.schemas.series import (
    Alarm,
    AlarmList,
    Evaluation,
    EvaluationList,
    Series,
    SeriesItem,
    SeriesRequest,
    Spike,
    SpikeList,
    X,
)
from api.telemetry import LAYER_SERIES, SERIES, X_UNITS, check_keys, config_of, run_source, trial_source
from orchestrator.errors import NotFound
from orchestrator.tracking.loads import load_history, loads_at
from orchestrator.tracking.series import alarms, evaluations, query_series, spikes
from trainer.metrics.catalog import ROUTER_SCALARS

router = APIRouter(tags=["telemetry"])

Points = Annotated[int, Query(ge=2, le=2000, description="Most points of the grid.")]
Frames = Annotated[int, Query(ge=1, le=2000, description="Most frames.")]
Keys = Annotated[list[str] | None, Query(max_length=20, description="Router metrics; all of them if left out.")]


@router.post("/series:query", operation_id="query_series", responses=problems(NOT_FOUND))
def query(request: SeriesRequest, database: DatabaseOf, settings: SettingsOf) -> Series:
    """Metrics of several trials or runs on one common grid: minimum, last value and maximum of each bucket."""
    check_keys(request.keys, SERIES, place="/keys")
    with database.read() as work:
        trials = [work.trials.get(trial_id) for trial_id in dict.fromkeys(request.trials)]
        runs = [work.runs.get(run_id) for run_id in dict.fromkeys(request.runs)]
        sources = [trial_source(work, trial, settings.home) for trial in trials]
        sources += [run_source(work, run, settings.home) for run in runs]
    trial_of_run = {run.id: run.trial_id for run in runs}
    found = query_series(
        sources,
        list(dict.fromkeys(request.keys)),
        x=request.x,
        points=request.points,
        x_range=request.x_range,
        layers=request.layers,
    )
    items = [
        SeriesItem(
            trial_id=trial_of_run.get(one.id, one.id),
            run_id=one.id if one.id in trial_of_run else None,
            key=one.key,
            layer=one.layer,
            domain=one.domain,
            min=one.min,
            last=one.last,
            max=one.max,
            num_rows=one.num_rows,
            num_nonfinite=one.num_nonfinite,
        )
        for one in found.series
    ]
    return Series(x=request.x, x_unit=X_UNITS[request.x], grid=found.x, raw=found.raw, items=items)


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
    wanted = list(dict.fromkeys(keys or ROUTER_SCALARS))
    check_keys(wanted, LAYER_SERIES, place="/query/keys")
    with database.read() as work:
        trial = work.trials.get(trial_id)
        source = trial_source(work, trial, settings.home)
    found = query_series([source], wanted, x=x, points=points, layers="each")
    layers = sorted({one.layer for one in found.series if one.layer is not None})
    by_place = {(one.key, one.layer): one for one in found.series}
    config = config_of(trial)
    moe = None if config is None else config.model.moe
    return RouterGrid(
        trial_id=trial.id,
        x=x,
        x_unit=X_UNITS[x],
        grid=found.x,
        raw=found.raw,
        layers=layers,
        num_layers=0 if config is None else config.model.num_layers,
        num_experts=None if moe is None else moe.num_experts,
        top_k=None if moe is None else moe.top_k,
        metrics=[
            RouterMetric(
                key=key,
                min=[by_place[key, layer].min for layer in layers],
                last=[by_place[key, layer].last for layer in layers],
                max=[by_place[key, layer].max for layer in layers],
            )
            for key in wanted
            if layers and (key, layers[0]) in by_place
        ],
    )


@router.get("/trials/{trial_id}/router/loads", operation_id="get_router_loads", responses=problems(NOT_FOUND))
def get_router_loads(
    trial_id: str,
    database: DatabaseOf,
    settings: SettingsOf,
    step: Annotated[int | None, Query(ge=1, description="The newest recorded step if left out.")] = None,
) -> RouterLoads:
    """Exact tokens per expert and layer in one optimizer step."""
    with database.read() as work:
        trial = work.trials.get(trial_id)
        source = trial_source(work, trial, settings.home)
    config = config_of(trial)
    if config is None or config.model.moe is None:
        raise NotFound(f"trial {trial_id} has no router: its model is dense or its point makes no configuration")
    found = loads_at(source, step)
    if found is None:
        raise NotFound(f"trial {trial_id} has no loads recorded{'' if step is None else f' by step {step}'} yet")
    return RouterLoads(
        trial_id=trial.id,
        run_id=found.run_id,
        step=found.step,
        tokens=found.tokens,
        step_tokens=config.step_tokens,
        top_k=config.model.moe.top_k,
        num_experts=config.model.moe.num_experts,
        layers=found.layers,
        counts=found.counts,
    )


@router.get(
    "/trials/{trial_id}/router/load-history",
    operation_id="get_load_history",
    response_class=Response,
    responses={
        200: {
            "description": "uint32 little-endian n, n bytes of LoadHistoryMeta, one byte per frame, layer and expert",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        **problems(NOT_FOUND),
    },
)
def get_load_history(trial_id: str, database: DatabaseOf, settings: SettingsOf, frames: Frames = 300) -> Response:
    """Loads relative to a fair share over all of training, one byte each; see LoadHistoryMeta."""
    with database.read() as work:
        trial = work.trials.get(trial_id)
        source = trial_source(work, trial, settings.home)
    config = config_of(trial)
    moe = None if config is None else config.model.moe
    found = load_history(source, points=frames)
    meta = LoadHistoryMeta(
        trial_id=trial.id,
        encoding="u8-log2",
        num_frames=0 if found is None else len(found.steps),
        steps=[] if found is None else found.steps,
        tokens=[] if found is None else found.tokens,
        layers=[] if found is None else found.layers,
        num_experts=0 if found is None else found.num_experts,
        top_k=None if moe is None else moe.top_k,
    )
    head = meta.model_dump_json().encode()
    codes = b"" if found is None else found.codes
    return Response(struct.pack("<I", len(head)) + head + codes, media_type="application/octet-stream")


@router.get("/trials/{trial_id}/alarms", operation_id="list_alarms", responses=problems(NOT_FOUND))
def list_alarms(trial_id: str, database: DatabaseOf, settings: SettingsOf) -> AlarmList:
    """Alarms that the rules of the trial's config raised and cleared."""
    with database.read() as work:
        source = trial_source(work, work.trials.get(trial_id), settings.home)
    return AlarmList(items=[Alarm.model_validate({"trial_id": trial_id, **alarm}) for alarm in alarms(source)])


@router.get("/experiments/{experiment_id}/alarms", operation_id="list_experiment_alarms", responses=problems(NOT_FOUND))
def list_experiment_alarms(experiment_id: str, database: DatabaseOf, settings: SettingsOf) -> AlarmList:
    """The alarms of all trials of an experiment, trial by trial in the order of their first alarm."""
    with database.read() as work:
        work.experiments.get(experiment_id)
        sources = [
            trial_source(work, work.trials.get(trial_id), settings.home)
            for trial_id in work.events.trials_with("alarm", experiment_id=experiment_id)
        ]
    return AlarmList(
        items=[Alarm.model_validate({"trial_id": source.id, **alarm}) for source in sources for alarm in alarms(source)]
    )


@router.get("/trials/{trial_id}/spikes", operation_id="list_spikes", responses=problems(NOT_FOUND))
def list_spikes(trial_id: str, database: DatabaseOf, settings: SettingsOf) -> SpikeList:
    """Loss and gradient spikes with the router's state before, at and after."""
    with database.read() as work:
        source = trial_source(work, work.trials.get(trial_id), settings.home)
    return SpikeList(items=[Spike.model_validate({"trial_id": trial_id, **spike}) for spike in spikes(source)])


@router.get("/trials/{trial_id}/evaluations", operation_id="list_evaluations", responses=problems(NOT_FOUND))
def list_evaluations(trial_id: str, database: DatabaseOf, settings: SettingsOf) -> EvaluationList:
    """Held-out bits per byte and loss per corpus at every evaluation."""
    with database.read() as work:
        source = trial_source(work, work.trials.get(trial_id), settings.home)
    points = evaluations(source)
    return EvaluationList(
        trial_id=trial_id,
        domains=sorted({point.domain for point in points}, key=lambda domain: (domain == "all", domain)),
        items=[Evaluation.model_validate(point._asdict()) for point in points],
    )
