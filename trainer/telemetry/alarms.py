"""Alarms: events of rules about metrics, raised once and cleared once, one JSON line each.

Evaluated where telemetry comes to the host, on every step in order. What is remembered is counts of steps, which are
checkpointed: a resumed run raises and clears the same alarms at the same steps.

Letters: `S` consecutive steps, `C` curves of a rule: one per layer, or one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.metrics.alarm_rules import WatchedMetric
from trainer.metrics.catalog import METRICS
from trainer.telemetry.chunks import StepBlock
from trainer.telemetry.event_lines import EventLines

ALARMS_FILE = "alarms.jsonl"

_OVER_LAYERS = {"mean": np.mean, "min": np.min, "max": np.max}


class AlarmRecorder:
    """Watches metrics and appends what it has to say to `folder/alarms.jsonl`.

    Args:
        folder: the run's folder; None watches without writing (workers other than rank 0).
        watched: the rules.
        layers: index in the whole model of each MoE layer.
    """

    def __init__(self, folder: Path | None, *, watched: Sequence[WatchedMetric], layers: Sequence[int]) -> None:
        self._lines = EventLines(None if folder is None else folder / ALARMS_FILE)
        self._layers = tuple(layers)
        self._watches = [_Watch(rule, len(layers) if _is_by_layer(rule) else 1) for rule in watched]
        self.stopped_by: str | None = None
        """What the run is to end for, in words; None while it may go on."""

    def observe(self, block: StepBlock, num_steps: int) -> None:
        """Take the first `num_steps` steps of a block."""
        events = [
            (step, number, watch.rule, curve, raised, value, since)
            for number, watch in enumerate(self._watches)
            for step, curve, raised, value, since in watch.observe(_curves(watch.rule, block)[:num_steps])
        ]
        for index, _, rule, curve, raised, value, since in sorted(events, key=lambda event: event[:2]):
            step = int(block.steps[index])
            layer = self._layer(rule, block, index, curve)
            message = _message(rule, layer=layer, value=value, first_step=step - since + 1, raised=raised)
            self._lines.append(
                {
                    "step": step,
                    "tokens": int(block.tokens[index]),
                    "time_ms": int(block.time_ms[index]),
                    "rule": rule.name,
                    "severity": rule.severity,
                    "change": "raised" if raised else "cleared",
                    "metric": rule.metric,
                    "comparison": rule.comparison,
                    "threshold": rule.threshold,
                    "for_steps": rule.for_steps,
                    "layer": layer,
                    "value": value,
                    "first_step": step - since + 1,
                    "message": message,
                }
            )
            if raised and rule.severity == "stop" and self.stopped_by is None:
                self.stopped_by = message

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to go on as if it had not been interrupted, as JSON values."""
        return {"watches": [watch.state() for watch in self._watches], "stopped_by": self.stopped_by}

    def restore(self, state: Mapping[str, Any], *, step: int) -> None:
        """Put back what `state` returned at `step`, and drop the written events that this run will write again."""
        for watch, stored in zip(self._watches, state["watches"], strict=True):
            watch.restore(stored)
        self.stopped_by = state["stopped_by"]
        self._lines.keep(lambda event: event["step"] <= step)

    def _layer(self, rule: WatchedMetric, block: StepBlock, index: int, curve: int) -> int | None:
        """The layer that an alarm is about; None of a mean, and of what has no layers."""
        if not rule.has_layers or rule.layers == "mean":
            return None
        if rule.layers == "worst":
            return self._layers[curve]
        values_L = block.router[rule.metric][index]
        return self._layers[int(values_L.argmin() if rule.layers == "min" else values_L.argmax())]


class _Watch:
    """One rule over its curves."""

    def __init__(self, rule: WatchedMetric, num_curves: int) -> None:
        self.rule = rule
        self._wrong_C = np.zeros(num_curves, dtype=np.int64)
        self._right_C = np.zeros(num_curves, dtype=np.int64)
        self._raised_C = np.zeros(num_curves, dtype=bool)

    def observe(self, values_SC: NDArray[np.float64]) -> list[tuple[int, int, bool, float, int]]:
        """Take values of the next steps; return (index of the step, curve, raised, value, steps in a row) of events."""
        # A value that is not a number is on neither side.
        if self.rule.comparison == "at_least":
            wrong_SC, right_SC = values_SC >= self.rule.threshold, values_SC < self.rule.rearm
        else:
            wrong_SC, right_SC = values_SC <= self.rule.threshold, values_SC > self.rule.rearm
        if not wrong_SC.any() and not self._raised_C.any():
            self._wrong_C[:] = 0
            return []
        events = []
        for index, (wrong_C, right_C) in enumerate(zip(wrong_SC, right_SC, strict=True)):
            self._wrong_C = np.where(wrong_C, self._wrong_C + 1, 0)
            self._right_C = np.where(right_C & self._raised_C, self._right_C + 1, 0)
            rises_C = ~self._raised_C & (self._wrong_C >= self.rule.for_steps)
            clears_C = self._raised_C & (self._right_C >= self.rule.for_steps)
            for curve in np.flatnonzero(rises_C | clears_C).tolist():
                in_a_row = self._wrong_C if rises_C[curve] else self._right_C
                events.append(
                    (index, curve, bool(rises_C[curve]), float(values_SC[index, curve]), int(in_a_row[curve]))
                )
            self._raised_C = (self._raised_C | rises_C) & ~clears_C
            self._right_C = np.where(clears_C, 0, self._right_C)
        return events

    def state(self) -> dict[str, Any]:
        return {
            "wrong_steps": self._wrong_C.tolist(),
            "right_steps": self._right_C.tolist(),
            "raised": self._raised_C.tolist(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._wrong_C = np.array(state["wrong_steps"], dtype=np.int64)
        self._right_C = np.array(state["right_steps"], dtype=np.int64)
        self._raised_C = np.array(state["raised"], dtype=bool)


def _is_by_layer(rule: WatchedMetric) -> bool:
    return rule.has_layers and rule.layers == "worst"


def _curves(rule: WatchedMetric, block: StepBlock) -> NDArray[np.float64]:
    """Return what a rule watches of a block, shape [S, C]."""
    if not rule.has_layers:
        return block.scalars[rule.metric][:, None]
    values_SL = block.router[rule.metric]
    return values_SL if rule.layers == "worst" else _OVER_LAYERS[rule.layers](values_SL, axis=1)[:, None]


def _message(rule: WatchedMetric, *, layer: int | None, value: float, first_step: int, raised: bool) -> str:
    where = "" if layer is None else f" of layer {layer}"
    over = f" ({rule.layers} over layers)" if rule.has_layers and rule.layers != "worst" else ""
    sign = (">=" if raised else "<") if rule.comparison == "at_least" else ("<=" if raised else ">")
    level = rule.threshold if raised else rule.rearm
    unit = METRICS[rule.metric].unit
    level_text = f"{level:.4g}" if unit == "1" else f"{level:.4g} {unit}"
    verb = "" if raised else "cleared: "
    return f"{rule.name}: {verb}{rule.metric}{where}{over} {sign} {level_text} since step {first_step}, now {value:.4g}"
