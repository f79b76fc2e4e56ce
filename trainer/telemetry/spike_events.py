"""Spike events: one JSON line per loss or gradient spike, with what a researcher needs to explain it.

An event is opened by the online detector and written once complete: when the value has fallen back below the alarm
level, after `STEPS_AFTER` steps, or at the end of the run. While it is open the same metric opens no other: one
excursion is one event.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trainer.durable import replace_file
from trainer.metrics.spikes import SpikeDetector

SPIKES_FILE = "spikes.jsonl"

STEPS_AFTER = 20
"""Steps after which an event that has not recovered is written."""

MAX_DOCUMENT_IDS = 32

WATCHED = ("train/loss", "optimizer/grad_norm")

RouterState = list[dict[str, float]]
"""Per MoE layer: layer, max_violation, token_entropy."""


class ObservedStep(NamedTuple):
    """One step as the spike recorder sees it; `values` holds the metrics of WATCHED."""

    step: int
    tokens: int
    time_ms: int
    values: dict[str, float]
    lr: float
    router: RouterState


class Samples(NamedTuple):
    """The samples of a step: first and last index, and the documents they touch."""

    first: int
    last: int
    document_ids: list[str]


@dataclass
class _OpenEvent:
    alarm_level: float
    record: dict[str, Any] = field(default_factory=dict)


class SpikeRecorder:
    """Watches the loss and the gradient norm of every step, in order, and appends events to `folder/spikes.jsonl`.

    Args:
        folder: the run's folder; None detects and counts without writing (workers other than rank 0).
        samples_of_step: what a step (1-based) was trained on; called for spikes only.
    """

    def __init__(self, folder: Path | None, *, samples_of_step: Callable[[int], Samples]) -> None:
        self._path = None if folder is None else folder / SPIKES_FILE
        self._samples_of_step = samples_of_step
        self._detectors = {metric: SpikeDetector() for metric in WATCHED}
        self._open: dict[str, _OpenEvent] = {}
        self._router_before: RouterState = []
        self.num_spikes = 0
        """Spikes detected so far, open ones included."""

    def observe(self, observed: ObservedStep) -> None:
        """Take the next step."""
        for metric, detector in self._detectors.items():
            value = observed.values[metric]
            spike = detector.update(value)
            event = self._open.get(metric)
            if event is not None:
                recovered = value <= event.alarm_level
                if recovered or observed.step >= event.record["step"] + STEPS_AFTER:
                    event.record["router_after"] = observed.router
                    event.record["recovered_step"] = observed.step if recovered else None
                    self._append(self._open.pop(metric))
            elif spike is not None:
                samples = self._samples_of_step(observed.step)
                self.num_spikes += 1
                record = {
                    "step": observed.step,
                    "tokens": observed.tokens,
                    "time_ms": observed.time_ms,
                    "metric": metric,
                    "value": value,
                    "baseline": spike.baseline,
                    "z": spike.z,
                    "size": spike.size,
                    "lr": observed.lr,
                    "grad_norm": observed.values["optimizer/grad_norm"],
                    "sample_indices": [samples.first, samples.last],
                    "document_ids": samples.document_ids[:MAX_DOCUMENT_IDS],
                    "router_before": self._router_before,
                    "router_at": observed.router,
                    "router_after": None,
                    "recovered_step": None,
                }
                self._open[metric] = _OpenEvent(spike.baseline + detector.threshold * spike.sigma, record)
        self._router_before = observed.router

    def close(self) -> None:
        """Write the events still open, as they are. `state` stays as it was: a resumed run completes them."""
        for event in self._open.values():
            self._append(event)
        self._open.clear()

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to go on as if it had not been interrupted, as JSON values."""
        return {
            "num_spikes": self.num_spikes,
            "windows": {metric: detector.values() for metric, detector in self._detectors.items()},
            "router_before": self._router_before,
            "open": {
                metric: {"alarm_level": event.alarm_level, "record": event.record}
                for metric, event in self._open.items()
            },
        }

    def restore(self, state: dict[str, Any], *, step: int) -> None:
        """Put back what `state` returned at `step`, and drop the written events that this run will write again."""
        self.num_spikes = state["num_spikes"]
        self._router_before = state["router_before"]
        self._open = {
            metric: _OpenEvent(event["alarm_level"], dict(event["record"])) for metric, event in state["open"].items()
        }
        for metric, detector in self._detectors.items():
            detector.restore(state["windows"][metric])
        if self._path is None or not self._path.exists():
            return
        still_open = {(event.record["step"], metric) for metric, event in self._open.items()}
        lines = [json.loads(line) for line in _complete_lines(self._path)]
        kept = [line for line in lines if line["step"] <= step and (line["step"], line["metric"]) not in still_open]
        replace_file(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def _append(self, event: _OpenEvent) -> None:
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event.record) + "\n")


def _complete_lines(path: Path) -> list[str]:
    """Return the lines that end in a newline: a kill may have cut the last one short."""
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()
