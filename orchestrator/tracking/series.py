"""Telemetry for people to look at: trials on one common grid, router metrics by layer, evaluations, spikes, alarms.

A bucket of the grid keeps its smallest, last and largest value, so no spike is lost, and all series share the same x,
so they can be drawn and averaged without aligning anything. Few enough points are returned as they are.

Letters: `P` points of the grid, `L` MoE layers.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from orchestrator.tracking.chunks import chunks, columns, pieces
from trainer.metrics.catalog import (
    METRICS,
    PROBE_SCALARS,
    QUANTIZATION_SCALARS,
    ROUTER_SCALARS,
    SCALARS,
    UPDATE_SCALARS,
)

XAxis = Literal["step", "tokens", "time", "flops"]
"""`time` is seconds since the trial's first step, `flops` training FLOPs."""

Layers = Literal["worst", "mean", "each"]
"""What becomes of a metric's layers: the worst one at each step, their mean, or one series each."""

Values = list[float | None]

EVALUATION_METRICS = ("eval/bits_per_byte", "eval/loss")

_LOW_IS_WORSE = frozenset(name for name, metric in METRICS.items() if metric.better == "higher") | {
    # Neither end is good in itself, but a collapse shows at the low one.
    "router/token_entropy",
    "router/importance_entropy",
    "router/mutual_information",
    "router/top_k_mass",
    "router/margin",
}
_NO_ROWS = np.empty(0)


class RunFolder(NamedTuple):
    """A run and its absolute folder."""

    run_id: str
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Source:
    """A trial (or a single run) to read.

    Attributes:
        id: any id; comes back with the series.
        runs: the trial's runs, oldest first.
        flops_per_token: training FLOPs per token, needed for `x="flops"` only.
    """

    id: str
    runs: tuple[RunFolder, ...]
    flops_per_token: float | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """The runs' folders, oldest first."""
        return tuple(run.folder for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve on the common grid; None where a bucket holds no finite value.

    Attributes:
        id: the source's id.
        key: the metric.
        layer: index in the whole model, if the curve is that of one layer.
        domain: corpus or `all`, if the metric is an evaluation's.
        min, last, max: [P]; the same values if the grid is raw.
        num_rows: recorded points in the range.
        num_nonfinite: those of them that are NaN or infinite and therefore in no bucket.
    """

    id: str
    key: str
    layer: int | None
    domain: str | None
    min: Values
    last: Values
    max: Values
    num_rows: int
    num_nonfinite: int


@dataclass(frozen=True, kw_only=True)
class SeriesGrid:
    """Series on one grid.

    Attributes:
        x: [P] ascending; the points themselves if `raw`, else the upper ends of the buckets.
        raw: every recorded point is there.
        series: per source and key one, or one per layer or domain.
    """

    x: list[float]
    raw: bool
    series: list[Series]


class _Curve(NamedTuple):
    source: Source
    key: str
    layer: int | None
    domain: str | None
    xs: np.ndarray
    ys: np.ndarray


def query_series(
    sources: Sequence[Source],
    keys: Sequence[str],
    *,
    x: XAxis = "step",
    points: int = 500,
    x_range: tuple[float, float] | None = None,
    layers: Layers = "worst",
) -> SeriesGrid:
    """Series of several trials on one grid of at most `points` points.

    Args:
        sources: the trials.
        keys: metrics of the catalogue; an evaluation metric gives one series per domain.
        x: the x axis.
        points: most points of the grid.
        x_range: only this part of the x axis, both ends included; None: all there is.
        layers: what becomes of the layers of a router metric.

    Raises:
        ValueError: a key or the number of points is not valid, or FLOPs are not known.
    """
    if points < 1:
        raise ValueError(f"points={points} is below 1; ask for at least one")
    for key in keys:
        _check_key(key)
    curves = [
        curve if x_range is None else _within(curve, x_range)
        for source in sources
        for key in keys
        for curve in _curves(source, key, x, layers)
    ]
    grid, is_raw = _grid([curve.xs for curve in curves], points, x_range)
    series = [
        Series(
            id=curve.source.id,
            key=curve.key,
            layer=curve.layer,
            domain=curve.domain,
            num_rows=len(curve.ys),
            num_nonfinite=int(np.count_nonzero(~np.isfinite(curve.ys))),
            **_bucketed(curve.xs, curve.ys, grid, is_raw=is_raw),
        )
        for curve in curves
    ]
    return SeriesGrid(x=(grid if is_raw else grid[1:]).tolist(), raw=is_raw, series=series)


class EvaluationPoint(NamedTuple):
    """Held-out figures of one domain at one step; `all` is the mean over the domains."""

    step: int
    tokens: int
    time_ms: int
    domain: str
    bits_per_byte: float
    loss: float


def evaluations(source: Source) -> list[EvaluationPoint]:
    """Every evaluation of a trial by step and domain; of one made twice (by a retried run) the later."""
    table = columns(source.folders, "evaluations", ["tokens", "time_ms", "domain", "eval/bits_per_byte", "eval/loss"])
    found = {}
    for step, tokens, time_ms, domain, bits_per_byte, loss in zip(*table.values(), strict=True):
        found[int(step), str(domain)] = EvaluationPoint(
            int(step), int(tokens), int(time_ms), str(domain), float(bits_per_byte), float(loss)
        )
    return [found[key] for key in sorted(found)]


def spikes(source: Source) -> list[dict[str, Any]]:
    """The loss and gradient spikes of a trial in order of steps, each as it was recorded and with its `run_id`.

    Those that a later run went over again are left out: it recorded its own.
    """
    return _of_trial(source, read_spikes)


def alarms(source: Source) -> list[dict[str, Any]]:
    """The alarms that a trial raised and cleared, in order of steps, each with its `run_id`; as for `spikes`."""
    return _of_trial(source, read_alarms)


def machine_use(source: Source) -> list[dict[str, Any]]:
    """What the machine did while a trial trained, in order of steps, each sample with its `run_id`; as for `spikes`."""
    return _of_trial(source, lambda folder: _lines(folder / "machine.jsonl"))


def read_spikes(folder: Path) -> list[dict[str, Any]]:
    """The spikes that one run recorded so far; [] if none."""
    return _lines(folder / "spikes.jsonl")


def read_alarms(folder: Path) -> list[dict[str, Any]]:
    """The alarms that one run raised and cleared so far; [] if none."""
    return _lines(folder / "alarms.jsonl")


def _of_trial(source: Source, read: Callable[[Path], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for run, piece in zip(source.runs, pieces(source.folders), strict=True):
        for event in read(piece.folder):
            if piece.before is None or event["step"] < piece.before:
                found.append({"run_id": run.run_id, **event})
    return sorted(found, key=lambda event: event["step"])


def _lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file that grows by lines."""
    if not path.exists():
        return []
    # The last line may be half written; it is whole once its newline is there.
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def last_step(source: Source) -> int:
    """The last training step in the telemetry; -1 before any."""
    return max(
        (chunk.last for piece in pieces(source.folders) for chunk in chunks(piece.folder, "scalars")), default=-1
    )


def moe_layers(source: Source) -> list[int]:
    """Indices in the whole model of the layers with router telemetry; [] for a dense model or before any chunk."""
    for folder in reversed(source.folders):
        for chunk in chunks(folder, "router")[:1]:
            table = columns([folder], "router", ["layer"], steps=(chunk.first, chunk.first))
            return np.unique(table["layer"]).astype(int).tolist()
    return []


def x_values(source: Source, table: dict[str, np.ndarray], x: XAxis) -> np.ndarray:
    """The x values of the rows of a table with step, tokens and time_ms.

    Raises:
        ValueError: FLOPs are asked for and not known.
    """
    if x == "time":
        return (table["time_ms"] - _start_ms(source)) / 1000.0
    if x == "flops":
        if source.flops_per_token is None:
            raise ValueError(f"FLOPs per token of {source.id} are not known yet; choose another x axis")
        return table["tokens"] * source.flops_per_token
    return table[x].astype(np.float64)


def _check_key(key: str) -> None:
    known = (*SCALARS, *UPDATE_SCALARS, *ROUTER_SCALARS, *QUANTIZATION_SCALARS, *PROBE_SCALARS, *EVALUATION_METRICS)
    if key not in known:
        raise ValueError(f"there is no series {key!r}; there are: {', '.join(known)}")


def _curves(source: Source, key: str, x: XAxis, layers: Layers) -> Iterator[_Curve]:
    if key in EVALUATION_METRICS:
        rows = evaluations(source)
        for domain in sorted({row.domain for row in rows}):
            own = [row for row in rows if row.domain == domain]
            table = {name: np.array([getattr(row, name) for row in own]) for name in ("step", "tokens", "time_ms")}
            ys = np.array([row.bits_per_byte if key == "eval/bits_per_byte" else row.loss for row in own])
            yield _Curve(source, key, None, domain, x_values(source, table, x), ys)
    elif key in SCALARS or key in UPDATE_SCALARS:
        table = columns(source.folders, "scalars", ["tokens", "time_ms", key])
        yield _Curve(source, key, None, None, x_values(source, table, x), table[key].astype(np.float64))
    else:
        yield from _layer_curves(source, key, x, layers)


def _layer_curves(source: Source, key: str, x: XAxis, layers: Layers) -> Iterator[_Curve]:
    kind = "probes" if key in PROBE_SCALARS else "router"
    table = columns(source.folders, kind, ["tokens", "time_ms", "layer", key])
    ys = table[key].astype(np.float64)
    if not len(ys) or (key in QUANTIZATION_SCALARS and np.isnan(ys).all()):
        if layers != "each":
            yield _Curve(source, key, None, None, _NO_ROWS, _NO_ROWS)
        return
    xs = x_values(source, table, x)
    if layers == "each":
        for layer in np.unique(table["layer"]).astype(int).tolist():
            rows = table["layer"] == layer
            yield _Curve(source, key, layer, None, xs[rows], ys[rows])
        return
    # Rows of a step lie together, layer after layer.
    starts = np.flatnonzero(np.diff(table["step"], prepend=-1))
    if layers == "mean":
        reduced = np.add.reduceat(ys, starts) / np.diff(starts, append=len(ys))
    else:
        reduced = (np.minimum if key in _LOW_IS_WORSE else np.maximum).reduceat(ys, starts)
    yield _Curve(source, key, None, None, xs[starts], reduced)


def _within(curve: _Curve, x_range: tuple[float, float]) -> _Curve:
    inside = (curve.xs >= x_range[0]) & (curve.xs <= x_range[1])
    return curve._replace(xs=curve.xs[inside], ys=curve.ys[inside])


def _start_ms(source: Source) -> float:
    for folder in source.folders:
        for chunk in chunks(folder, "scalars")[:1]:
            times = columns([folder], "scalars", ["time_ms"], steps=(chunk.first, chunk.first))["time_ms"]
            if len(times):
                return float(times[0])
    return 0.0


def _grid(xs: list[np.ndarray], points: int, x_range: tuple[float, float] | None) -> tuple[np.ndarray, bool]:
    """The grid's points if raw, else its `points + 1` edges."""
    union = np.unique(np.concatenate(xs)) if xs else np.empty(0)
    if len(union) <= points:
        return union, True
    low, high = (union[0], union[-1]) if x_range is None else x_range
    return np.linspace(low, high, points + 1), False


def _bucketed(xs: np.ndarray, ys: np.ndarray, grid: np.ndarray, *, is_raw: bool) -> dict[str, Values]:
    finite = np.isfinite(ys)
    xs, ys = xs[finite], ys[finite]
    # x ascends within a trial but for the clock (`time`), which may be set back.
    order = np.argsort(xs, kind="stable")
    xs, ys = xs[order], ys[order]
    size = len(grid) if is_raw else len(grid) - 1
    if not len(xs):
        return {name: [None] * size for name in ("min", "last", "max")}
    # A point on the border of two buckets belongs to the lower one, whose upper end it is.
    buckets = np.searchsorted(grid, xs) if is_raw else np.clip(np.searchsorted(grid, xs) - 1, 0, size - 1)
    starts = np.flatnonzero(np.diff(buckets, prepend=-1))
    ends = np.append(starts[1:], len(xs)) - 1
    filled = buckets[starts]
    return {
        "min": _spread(np.minimum.reduceat(ys, starts), filled, size),
        "last": _spread(ys[ends], filled, size),
        "max": _spread(np.maximum.reduceat(ys, starts), filled, size),
    }


def _spread(values: np.ndarray, at: np.ndarray, size: int) -> Values:
    result: Values = [None] * size
    for position, value in zip(at.tolist(), values.tolist(), strict=True):
        result[position] = value
    return result
