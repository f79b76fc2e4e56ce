"""Spike events: one JSON line per loss or gradient spike, with what a researcher needs to explain it.

An event is opened by the online detector and written once complete: when the value has fallen back below the alarm
level, after `STEPS_AFTER` steps, or at the end of the run. While it is open the same metric opens no other: one
excursion is one event. It says what moved when, never why.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trainer.metrics.spikes import ONLINE_WINDOW, RECENT, SpikeDetector, first_departure
from trainer.telemetry.event_lines import Event, EventLines

SPIKES_FILE = "spikes.jsonl"

STEPS_AFTER = 20
"""Steps after which an event that has not recovered is written."""

MAX_DOCUMENT_IDS = 32

WATCHED = ("train/loss", "optimizer/grad_norm")

MOVING = ("max_violation", "token_entropy")
"""Of each layer's router, what is searched for a move before the spike."""

_ROUTER_NAMES = ("layer", *MOVING)

RouterState = list[dict[str, float]]
"""Per MoE layer: layer, max_violation, token_entropy."""


class ObservedStep(NamedTuple):
    """One step as the spike recorder sees it; `values` holds the metrics of WATCHED, `grad_norms` a norm per role."""

    step: int
    tokens: int
    time_ms: int
    values: dict[str, float]
    lr: float
    router: RouterState
    grad_norms: Mapping[str, float] | None = None


class Preview(NamedTuple):
    """How a sample begins: its index, the documents it touches, and the first of its text."""

    sample_index: int
    document_ids: tuple[str, ...]
    text: str


class Samples(NamedTuple):
    """The samples of a step.

    first, last: their indices.
    document_ids: the documents they touch, `MAX_DOCUMENT_IDS` at most.
    previews: how some of them begin.
    document_chances: for each of the documents the chance that a step's samples, drawn at random, touch it.
    all_documents: whether `document_ids` names every document that they touch.
    num_documents: of all that the run may read.
    """

    first: int
    last: int
    document_ids: list[str]
    previews: tuple[Preview, ...] = ()
    document_chances: tuple[float, ...] | None = None
    all_documents: bool = True
    num_documents: int | None = None


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
        self._lines = EventLines(None if folder is None else folder / SPIKES_FILE)
        self._samples_of_step = samples_of_step
        self._detectors = {metric: SpikeDetector() for metric in WATCHED}
        self._open: dict[str, _OpenEvent] = {}
        # Of each curve the window of the detector, and the steps that are searched for a move.
        self._recent: deque[tuple[dict[str, float], RouterState]] = deque(maxlen=ONLINE_WINDOW + RECENT)
        self._checkpoint_step: int | None = None
        self._rewound: list[Event] = []
        self.num_spikes = 0
        """Spikes detected so far, open ones included."""

    def observe(self, observed: ObservedStep) -> tuple[str, ...]:
        """Take the next step; return the metrics that began to spike with it."""
        router_before = self._recent[-1][1] if self._recent else []
        self._recent.append((dict(observed.values), observed.router))
        found = []
        for metric, detector in self._detectors.items():
            value = observed.values[metric]
            spike = detector.update(value)
            event = self._open.get(metric)
            if event is not None:
                if value > event.record["peak_value"]:
                    event.record |= _peak(observed, value)
                recovered = value <= event.alarm_level
                if recovered or observed.step >= event.record["step"] + STEPS_AFTER:
                    event.record["router_after"] = observed.router
                    event.record["recovered_step"] = observed.step if recovered else None
                    event.record["recovery_steps"] = observed.step - event.record["step"] if recovered else None
                    self._lines.append(self._open.pop(metric).record)
            elif spike is not None:
                samples = self._samples_of_step(observed.step)
                self.num_spikes += 1
                found.append(metric)
                moved = self._moved(metric, observed.step)
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
                    "grad_norms": None if observed.grad_norms is None else dict(observed.grad_norms),
                    "sample_indices": [samples.first, samples.last],
                    "document_ids": samples.document_ids,
                    "document_chances": samples.document_chances and list(samples.document_chances),
                    "all_documents": samples.all_documents,
                    "num_documents": samples.num_documents,
                    "previews": [preview._asdict() for preview in samples.previews],
                    "checkpoint_step": self._checkpoint_step,
                    "moved": moved,
                    "order": [_sentence(each, metric) for each in moved],
                    "router_before": router_before,
                    "router_at": observed.router,
                    **_peak(observed, value),
                    "router_after": None,
                    "recovered_step": None,
                    "recovery_steps": None,
                    "rewound_to": None,
                }
                self._open[metric] = _OpenEvent(spike.baseline + detector.threshold * spike.sigma, record)
        return tuple(found)

    def checkpoint_made(self, step: int) -> None:
        """Note that the run can be put back to `step`."""
        self._checkpoint_step = step

    def abandoned(self) -> list[Event]:
        """Return the events of the spikes that the run went back for before, and those that are open now."""
        return [*self._rewound, *(dict(event.record) for event in self._open.values())]

    def rewound(self, events: Sequence[Event], *, number: int, to_step: int) -> None:
        """Keep events of steps that the run has gone back behind, marked by what was done.

        Args:
            events: `abandoned` of before going back.
            number: how often the run has gone back, with this time.
            to_step: the checkpoint's.
        """
        for event in events[len(self._rewound) :]:
            self.num_spikes += 1
            marked = event if event.get("rewind") else event | {"rewound_to": to_step, "rewind": number}
            self._rewound.append(marked)
            self._lines.append(marked)

    def close(self) -> None:
        """Write the events still open, as they are. `state` stays as it was: a resumed run completes them."""
        for event in self._open.values():
            self._lines.append(event.record)
        self._open.clear()

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to go on as if it had not been interrupted, as JSON values."""
        return {
            "num_spikes": self.num_spikes,
            "windows": {metric: detector.values() for metric, detector in self._detectors.items()},
            "recent": [
                [[values[metric] for metric in WATCHED], [[layer[name] for name in _ROUTER_NAMES] for layer in router]]
                for values, router in self._recent
            ],
            "checkpoint_step": self._checkpoint_step,
            "rewound": list(self._rewound),
            "open": {
                metric: {"alarm_level": event.alarm_level, "record": dict(event.record)}
                for metric, event in self._open.items()
            },
        }

    def restore(self, state: Mapping[str, Any], *, step: int) -> None:
        """Put back what `state` returned at `step`, and drop the written events that this run will write again."""
        self.num_spikes = state["num_spikes"]
        self._recent.clear()
        self._recent.extend(
            (
                dict(zip(WATCHED, values, strict=True)),
                [dict(zip(_ROUTER_NAMES, layer, strict=True)) for layer in router],
            )
            for values, router in state["recent"]
        )
        self._checkpoint_step = state["checkpoint_step"]
        self._rewound = list(state["rewound"])
        self._open = {
            metric: _OpenEvent(event["alarm_level"], dict(event["record"])) for metric, event in state["open"].items()
        }
        for metric, detector in self._detectors.items():
            detector.restore(state["windows"][metric])
        still_open = {(event.record["step"], metric) for metric, event in self._open.items()}
        self._lines.keep(lambda event: self._is_kept(event, step, still_open))

    def _is_kept(self, event: Event, step: int, still_open: set[tuple[int, str]]) -> bool:
        """Whether a written event is one from before the checkpoint of `step`."""
        if event.get("rewind") is not None:
            return any(event["rewind"] == kept["rewind"] for kept in self._rewound)
        return event["step"] <= step and (event["step"], event["metric"]) not in still_open

    def _moved(self, spiking: str, step: int) -> list[dict[str, Any]]:
        """What lies far from where it was before, at or up to 20 steps before the spike: earliest first."""
        curves: dict[tuple[str, int | None], list[float]] = {
            (metric, None): [values[metric] for values, _ in self._recent] for metric in WATCHED if metric != spiking
        }
        layers = {state["layer"]: index for index, state in enumerate(self._recent[-1][1])}
        for layer, index in layers.items():
            for name in MOVING:
                curves[f"router/{name}", int(layer)] = [router[index][name] for _, router in self._recent]
        found = []
        for (metric, layer), curve in curves.items():
            departure = first_departure(curve)
            if departure is not None:
                found.append(
                    {
                        "metric": metric,
                        "layer": layer,
                        "step": step - departure.steps_before,
                        "steps_before": departure.steps_before,
                        "z": departure.z,
                    }
                )
        return sorted(found, key=lambda each: each["step"])


def _peak(observed: ObservedStep, value: float) -> dict[str, Any]:
    return {"peak_step": observed.step, "peak_value": value, "router_peak": observed.router}


def _sentence(moved: Mapping[str, Any], spiking: str) -> str:
    """The order in time, in words."""
    where = "" if moved["layer"] is None else f" of layer {moved['layer']}"
    steps = moved["steps_before"]
    when = "at the same step as" if steps == 0 else f"{steps} step{'s' if steps > 1 else ''} before"
    return f"{moved['metric']}{where} moved {when} {spiking}"
