"""A run as it was recorded: its config, what it ran on, and, step by step, what has to come out again.

Letters: `S` steps, `L` MoE layers, `E` experts.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from trainer.config import TrainConfig
from trainer.errors import EvenloadError
from trainer.run_folder import CONFIG_FILE, ENVIRONMENT_FILE
from trainer.telemetry.chunks import TELEMETRY_FOLDER

LR, LOSS, GRAD_NORM, LOAD = "optimizer/lr", "train/loss", "optimizer/grad_norm", "router/load"
SCALARS = (LR, LOSS, GRAD_NORM)

_CHUNK = re.compile(r"(scalars|router)-(\d{8,})-(\d{8,})\.parquet")


class NotRecorded(EvenloadError):
    """There is no run to replay: no config, no telemetry, or none of the steps asked for."""


class Difference(NamedTuple):
    """The first thing that is not as recorded.

    step: 1-based.
    quantity: a metric, or a file of a checkpoint.
    layer: index in the whole model, of a quantity that every MoE layer has.
    recorded, replayed: the two values; None where there is none.
    """

    step: int
    quantity: str
    layer: int | None
    recorded: Any
    replayed: Any


@dataclass(frozen=True, eq=False)
class Steps:
    """Telemetry of steps that follow each other, possibly with gaps.

    Attributes:
        steps: int64 [S], ascending.
        scalars: `SCALARS` name -> float64 [S].
        layers: index in the whole model of each MoE layer.
        loads_E: int64 [S, L, E].
    """

    steps: NDArray[np.int64]
    scalars: Mapping[str, NDArray[np.float64]]
    layers: tuple[int, ...]
    loads_E: NDArray[np.int64]

    @property
    def last(self) -> int | None:
        """The last step; None if there is none."""
        return int(self.steps[-1]) if len(self.steps) else None


@dataclass(frozen=True)
class RecordedRun:
    """A run's folder, opened.

    Attributes:
        folder: of the run.
        config: as the run resolved it.
        environment: what it ran on; empty if it never got as far.
    """

    folder: Path
    config: TrainConfig
    environment: Mapping[str, Any]


def open_run(folder: Path) -> RecordedRun:
    """Return the run in `folder`.

    Raises:
        NotRecorded: there is no config, or one that this code does not know.
    """
    path = folder / CONFIG_FILE
    try:
        config = TrainConfig.model_validate(json.loads(path.read_text(encoding="utf-8"))["config"])
    except FileNotFoundError as error:
        raise NotRecorded(f"{folder} is no run's folder: there is no {CONFIG_FILE} in it") from error
    except ValidationError as error:
        raise NotRecorded(
            f"{path} is not a config that this code knows ({error.error_count()} problems, first: "
            f"{error.errors()[0]['msg']}); check out the commit in {folder / ENVIRONMENT_FILE}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise NotRecorded(f"{path} is damaged: {error}") from error
    return RecordedRun(folder, config, read_environment(folder))


def read_environment(folder: Path) -> dict[str, Any]:
    """Return what the run in `folder` ran on; empty if it has not noted it."""
    path = folder / ENVIRONMENT_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def recorded_range(folder: Path) -> tuple[int, int]:
    """Return the first and the last step in a run's telemetry.

    Raises:
        NotRecorded: it has none.
    """
    chunks = [(int(match[2]), int(match[3])) for _, match in _chunks(folder, "scalars")]
    if not chunks:
        raise NotRecorded(f"{folder} has no telemetry, so there is nothing to compare a replay with")
    return min(first for first, _ in chunks), max(last for _, last in chunks)


def read_steps(folder: Path, *, first: int, last: int) -> Steps:
    """Return the telemetry of the steps from `first` to `last`, as far as it is there.

    Raises:
        NotRecorded: a chunk cannot be read.
    """
    scalars = _read(folder, "scalars", ("step", *SCALARS), first, last)
    steps = np.asarray(scalars["step"], dtype=np.int64) if scalars is not None else np.zeros(0, dtype=np.int64)
    values = {name: np.asarray(scalars[name]) if scalars is not None else np.zeros(0) for name in SCALARS}
    router = _read(folder, "router", ("step", "layer", LOAD), first, last)
    if router is None or not len(steps):
        return Steps(steps, values, (), np.zeros((len(steps), 0, 0), dtype=np.int64))
    layers = tuple(sorted(set(np.asarray(router["layer"]).tolist())))
    loads = np.asarray(router[LOAD].combine_chunks().flatten(), dtype=np.int64)
    return Steps(steps, values, layers, loads.reshape(len(steps), len(layers), -1))


def first_difference(recorded: Steps, replayed: Steps) -> Difference | None:
    """Return the first thing in `replayed` that is not, bit for bit, in `recorded`; None if all of it is.

    Within a step in the order of cause: the learning rate is given, the router sends tokens, a loss results, then its
    gradient. Values that are no numbers are equal to each other.
    """
    there = {step: index for index, step in enumerate(recorded.steps.tolist())}
    for index, step in enumerate(replayed.steps.tolist()):
        if step not in there:
            return Difference(step, "step", None, None, step)
        difference = _difference_at(step, recorded, there[step], replayed, index)
        if difference is not None:
            return difference
    return None


def _difference_at(step: int, recorded: Steps, there: int, replayed: Steps, here: int) -> Difference | None:
    scalars = {name: (float(recorded.scalars[name][there]), float(replayed.scalars[name][here])) for name in SCALARS}
    if not _same(*scalars[LR]):
        return Difference(step, LR, None, *scalars[LR])
    if recorded.layers != replayed.layers:
        return Difference(step, "layers", None, list(recorded.layers), list(replayed.layers))
    for position, layer in enumerate(recorded.layers):
        ours, theirs = replayed.loads_E[here, position].tolist(), recorded.loads_E[there, position].tolist()
        if ours != theirs:
            return Difference(step, LOAD, layer, theirs, ours)
    for name in (LOSS, GRAD_NORM):
        if not _same(*scalars[name]):
            return Difference(step, name, None, *scalars[name])
    return None


def _same(one: float, other: float) -> bool:
    return np.float64(one).tobytes() == np.float64(other).tobytes() or (one != one and other != other)


def _read(folder: Path, table: str, columns: tuple[str, ...], first: int, last: int) -> pa.Table | None:
    parts: list[pa.Table] = []
    for path, match in _chunks(folder, table):
        if int(match[2]) > last or int(match[3]) < first:
            continue
        try:
            parts.append(pq.read_table(path, columns=list(columns)))
        except (pa.ArrowException, OSError, KeyError) as error:
            raise NotRecorded(f"{path} cannot be read: {error}") from error
    if not parts:
        return None
    whole = pa.concat_tables(parts)
    steps = np.asarray(whole["step"])
    return whole.filter(pa.array((steps >= first) & (steps <= last)))


def _chunks(folder: Path, table: str) -> list[tuple[Path, re.Match[str]]]:
    found = [
        (path, match)
        for path in (folder / TELEMETRY_FOLDER).glob(f"{table}-*.parquet")
        if (match := _CHUNK.fullmatch(path.name))
    ]
    return sorted(found, key=lambda chunk: int(chunk[1][2]))
