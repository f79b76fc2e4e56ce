"""Trials with their spikes as `orchestrator.implicated` takes them: rows of trials and runs, and events."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, select

from orchestrator.implicated import SpikeStep, SpikingTrial
from orchestrator.store.models import EventRow, RunRow, TrialRow
from trainer.metrics.spikes import ONLINE_MIN_WINDOW


def spiking_trials(connection: Connection, *, experiment_id: str | None) -> tuple[SpikingTrial, ...]:
    """Returns the trials that trained, of one experiment or (None) of all, with the spikes that became events.

    A step that a later run went over again counts once, with what the later run recorded.
    """
    ran = (
        select(TrialRow.id, TrialRow.experiment_id, TrialRow.number, TrialRow.config, RunRow.progress)
        .join(RunRow, RunRow.trial_id == TrialRow.id)
        .where(TrialRow.config.is_not(None))
        .order_by(TrialRow.experiment_id, TrialRow.number, RunRow.number)
    )
    recorded = select(EventRow.trial_id, EventRow.run_id, EventRow.data).where(EventRow.kind == "spike")
    if experiment_id is not None:
        ran = ran.where(TrialRow.experiment_id == experiment_id)
        recorded = recorded.where(EventRow.experiment_id == experiment_id)
    events: dict[str, list[tuple[str, Mapping[str, Any]]]] = defaultdict(list)
    for row in connection.execute(recorded.order_by(EventRow.id)):
        events[row.trial_id].append((row.run_id, row.data))
    rows: dict[str, Any] = {}
    num_steps: dict[str, int] = {}
    for row in connection.execute(ran):
        rows[row.id] = row
        num_steps[row.id] = max(num_steps.get(row.id, 0), (row.progress or {}).get("step", 0))
    return tuple(
        SpikingTrial(
            experiment_id=row.experiment_id,
            trial_id=row.id,
            number=row.number,
            order=data_order(row.config),
            num_steps=max(0, num_steps[row.id] - ONLINE_MIN_WINDOW),
            spikes=spike_steps(events[row.id]),
        )
        for row in rows.values()
        if num_steps[row.id]
    )


def data_order(config: Mapping[str, Any]) -> str:
    """Returns what decides which text the sample of an index is: equal for equal samples.

    Args:
        config: a TrainConfig as JSON values.
    """
    data = config["data"]
    total = sum(data["mixture"].values())
    shares = {name: weight / total for name, weight in sorted(data["mixture"].items())}
    return json.dumps([shares, data["tokenizer"], data["seq_len"], config["seed"]])


def spike_steps(events: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[SpikeStep, ...]:
    """Returns the steps of one trial that spiked, by step: loss and gradient norm at one step are one.

    Args:
        events: id of the run and what it recorded, oldest first.
    """
    # Of each place the newest event by metric; the order of metrics is that of their recording.
    places: dict[tuple[int, int], dict[str, tuple[str, Mapping[str, Any]]]] = defaultdict(dict)
    for run_id, event in events:
        places[event["step"], event["sample_indices"][0]][event["metric"]] = (run_id, event)
    return tuple(_spike_step(by_metric) for _, by_metric in sorted(places.items()))


def _spike_step(by_metric: Mapping[str, tuple[str, Mapping[str, Any]]]) -> SpikeStep:
    metrics = tuple(sorted(by_metric, key=lambda metric: (metric != "train/loss", metric)))
    run_id, event = by_metric[metrics[0]]
    # Runs of earlier versions recorded the documents alone.
    chances = event.get("document_chances") or [None] * len(event["document_ids"])
    text: dict[str, str] = {}
    for preview in event.get("previews", ()):
        for document_id in preview["document_ids"]:
            text.setdefault(document_id, preview["text"])
    return SpikeStep(
        run_id=run_id,
        step=event["step"],
        metrics=metrics,
        z=event["z"],
        size=event["size"],
        samples=(event["sample_indices"][0], event["sample_indices"][1]),
        document_chances=dict(zip(event["document_ids"], chances, strict=True)),
        all_documents=event.get("all_documents", True),
        num_documents=event.get("num_documents"),
        text=text,
    )
