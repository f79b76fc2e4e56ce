"""What of a trial goes to MLflow: params, tags, metric points and artifacts, as plain values.

Everything is a function of rows and of telemetry that is final, timestamps included, so that sending it again sends
the same bytes, which MLflow drops. MLflow itself is not imported here.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.states import TrialState
from orchestrator.store.records import ExperimentRecord, TrialRecord
from orchestrator.tracking.chunks import columns
from orchestrator.tracking.series import Source, evaluations, spikes
from trainer.config import TrainConfig
from trainer.metrics.catalog import QUANTIZATION_SCALARS, ROUTER_SCALARS, SCALARS

MAX_SCALAR_POINTS = 500
MAX_ROUTER_POINTS = 100
"""Per metric. Every step is in the telemetry; MLflow gets an even sample, for it keeps each point as a row."""
_MAX_PARAM_LENGTH = 500


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    timestamp_ms: int
    step: int


def params(trial: TrialRecord) -> dict[str, str]:
    """The trial's complete configuration, flattened to dotted paths."""
    return {path: str(value)[:_MAX_PARAM_LENGTH] for path, value in _flatten("", trial.config)}


def tags(experiment: ExperimentRecord, trial: TrialRecord, environment: Mapping[str, Any] | None) -> dict[str, str]:
    """What a trial is and how it stands. `environment` is that of its newest run."""
    found = {
        "evenload.experiment_id": experiment.id,
        "evenload.trial_id": trial.id,
        "evenload.number": str(trial.number),
        "evenload.kind": trial.kind.value,
        "evenload.label": trial.label,
        "evenload.state": trial.state.value,
        "evenload.cause": None if trial.cause is None else trial.cause.value,
        "evenload.reason": trial.reason or None,
        "evenload.config_fingerprint": trial.config_fingerprint,
    }
    if environment is not None:
        found |= {
            "evenload.data_fingerprint": environment.get("data_fingerprint"),
            "evenload.device": environment.get("device_name"),
            "mlflow.source.git.commit": environment.get("git_commit"),
        }
    return {key: str(value)[:5000] for key, value in found.items() if value is not None}


def run_name(trial: TrialRecord) -> str:
    """The name a trial has in MLflow's lists."""
    return trial.label or f"trial {trial.number}"


def step_points(source: Source, config: TrainConfig, *, after: int, until: int | None) -> Iterator[Point]:
    """The sampled training points of the steps `after < step <= until`; all to the end if `until` is None.

    A step is in the sample or not whatever was sent before, but for the last step of a trial, which always is.
    """
    last = math.inf if until is None else until
    steps = (after + 1, 2**62 if until is None else until)
    table = columns(source.folders, "scalars", ["time_ms", *SCALARS], steps=steps)
    rows = _sampled(table["step"], config, MAX_SCALAR_POINTS, after, last, with_last=until is None)
    for row in rows:
        for key in SCALARS:
            yield Point(key, float(table[key][row]), int(table["time_ms"][row]), int(table["step"][row]))
    table = columns(source.folders, "router", ["time_ms", *ROUTER_SCALARS, *QUANTIZATION_SCALARS], steps=steps)
    if not len(table["step"]):
        return
    # Rows of a step lie together, layer after layer.
    starts = np.flatnonzero(np.diff(table["step"], prepend=-1))
    counts = np.diff(starts, append=len(table["step"]))
    # A run records what it has: no casts without a narrow format, and not what came to the catalogue after it.
    recorded = [key for key in (*ROUTER_SCALARS, *QUANTIZATION_SCALARS) if not np.isnan(table[key]).all()]
    over_layers = {
        (key, word): reduced
        for key in recorded
        for word, reduced in (
            ("min", np.fmin.reduceat(table[key].astype(np.float64), starts)),
            ("mean", np.add.reduceat(table[key].astype(np.float64), starts) / counts),
            ("max", np.fmax.reduceat(table[key].astype(np.float64), starts)),
        )
    }
    router_steps, times = table["step"][starts], table["time_ms"][starts]
    for row in _sampled(router_steps, config, MAX_ROUTER_POINTS, after, last, with_last=until is None):
        for (key, word), values in over_layers.items():
            yield Point(f"{key}/{word}", float(values[row]), int(times[row]), int(router_steps[row]))


def evaluation_points(source: Source, *, after: int, until: int | None) -> Iterator[Point]:
    """Every evaluation of the steps `after < step <= until`, a key per domain."""
    for row in evaluations(source):
        if after < row.step and (until is None or row.step <= until):
            yield Point(f"eval/bits_per_byte/{row.domain}", row.bits_per_byte, row.time_ms, row.step)
            yield Point(f"eval/loss/{row.domain}", row.loss, row.time_ms, row.step)


def summary_points(trial: TrialRecord) -> Iterator[Point]:
    """The ended trial's figures, at the time it ended."""
    assert trial.finished_at_ms is not None
    if trial.objective is not None:
        yield Point("objective", trial.objective, trial.finished_at_ms, 0)
    for path, value in _flatten("", trial.summary):
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield Point(f"summary/{path.replace('.', '/')}", float(value), trial.finished_at_ms, 0)


def status(state: TrialState) -> str:
    """MLflow's word for a state of an ended trial; the exact one is in the tags."""
    if state in (TrialState.COMPLETED, TrialState.PRUNED):
        return "FINISHED"
    return "KILLED" if state is TrialState.CANCELLED else "FAILED"


def write_artifacts(source: Source, trial: TrialRecord, folder: Path) -> list[Path]:
    """Writes config.json and, if any, spikes.json and router_loads.parquet (step, layer, load) to `folder`."""
    written = [folder / "config.json"]
    written[0].write_text(json.dumps(trial.config, indent=1), encoding="utf-8")
    found = spikes(source)
    if found:
        written.append(folder / "spikes.json")
        written[-1].write_text(json.dumps(found, indent=1), encoding="utf-8")
    table = columns(source.folders, "router", ["tokens", "layer", "router/load"])
    if len(table["step"]):
        loads = table.pop("router/load")
        arrays = {name: pa.array(array) for name, array in table.items()}
        arrays["load"] = pa.FixedSizeListArray.from_arrays(pa.array(loads.reshape(-1)), loads.shape[1])
        written.append(folder / "router_loads.parquet")
        pq.write_table(pa.table(arrays), written[-1], compression="zstd")
    return written


def _sampled(
    steps: np.ndarray, config: TrainConfig, points: int, after: int, until: float, *, with_last: bool
) -> np.ndarray:
    """Rows of every n-th step, of the first, and of the last if the trial has ended."""
    stride = max(1, math.ceil(config.num_steps / points))
    wanted = (steps % stride == 0) | (steps == 1)
    if with_last and len(steps):
        wanted |= steps == steps.max()
    return np.flatnonzero(wanted & (steps > after) & (steps <= until))


def _flatten(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in value:
            yield from _flatten(f"{path}.{key}" if path else str(key), value[key])
    elif isinstance(value, list | tuple) and value:
        for index, item in enumerate(value):
            yield from _flatten(f"{path}.{index}", item)
    else:
        yield path, value
