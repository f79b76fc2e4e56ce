"""Reading a trial's telemetry: the chunk files of its runs as one canonical table.

A run appends chunks `<kind>-FFFFFFFF-LLLLLLLL.parquet` (first and last step in the name) and never changes one. A
retried trial has several runs; a later run replaces everything from its own first step on. Chunks may appear or, when
a run resumes in its own folder, vanish while they are being read: a vanished one is skipped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Kind = Literal["scalars", "router", "evaluations", "probes"]

_NAME = re.compile(r"(scalars|router|evaluations|probes)-(\d{8,})-(\d{8,})\.parquet")


class Chunk(NamedTuple):
    """One chunk file: rows of the steps `first` to `last`, both included."""

    first: int
    last: int
    path: Path


@dataclass(frozen=True)
class Piece:
    """What one run contributes to the canonical series: the steps `after < step < before`.

    Attributes:
        folder: the run's folder.
        before: first step of a later run, which replaces this run from there on; None if no later run has begun.
    """

    folder: Path
    before: int | None


def chunks(folder: Path, kind: Kind) -> list[Chunk]:
    """The chunks of one kind in a run's folder, in order of steps; [] if there are none yet."""
    telemetry = folder / "telemetry"
    if not telemetry.is_dir():
        return []
    found = []
    for path in telemetry.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and match.group(1) == kind:
            found.append(Chunk(int(match.group(2)), int(match.group(3)), path))
    return sorted(found)


def pieces(folders: Sequence[Path]) -> list[Piece]:
    """What each run contributes, oldest run first.

    Args:
        folders: the folders of a trial's runs, oldest first.
    """
    result: list[Piece] = []
    before: int | None = None
    for folder in reversed(folders):
        result.append(Piece(folder, before))
        # Step 0 holds evaluations only and is not a step of training: it says nothing about where the run went on from.
        own = [chunk.first for chunk in chunks(folder, "scalars")]
        if own:
            first = min(own)
            before = first if before is None else min(first, before)
    return result[::-1]


def columns(
    folders: Sequence[Path], kind: Kind, names: Sequence[str], *, steps: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """The named columns of the canonical table of a trial, in order of steps.

    Args:
        folders: the folders of a trial's runs, oldest first.
        kind: which table.
        names: columns; one of lists comes as a matrix with a row per list, one of text as objects.
        steps: only chunks that hold any step of this range (both included); rows outside it may come along.

    Returns:
        Column name -> array. All arrays have the same length; it is 0 if nothing was recorded yet. A column that a
        chunk does not have is NaN there: not every run records every metric.
    """
    wanted = tuple(dict.fromkeys(("step", *names)))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for piece in pieces(folders):
        for chunk in chunks(piece.folder, kind):
            if piece.before is not None and chunk.first >= piece.before:
                continue
            if steps is not None and (chunk.last < steps[0] or chunk.first > steps[1]):
                continue
            values = _read(chunk.path, wanted)
            if values is None:
                continue
            keep = slice(None)
            if piece.before is not None and chunk.last >= piece.before:
                keep = values[0] < piece.before
            for name, array in zip(wanted, values, strict=True):
                parts[name].append(array[keep])
    return {name: np.concatenate(arrays) if arrays else np.empty(0) for name, arrays in parts.items()}


def _read(path: Path, names: tuple[str, ...]) -> tuple[np.ndarray, ...] | None:
    try:
        stat = path.stat()
        return _read_version(path, names, stat.st_mtime_ns, stat.st_size)
    except FileNotFoundError:
        return None


@lru_cache(maxsize=1024)
def _read_version(path: Path, names: tuple[str, ...], mtime_ns: int, size: int) -> tuple[np.ndarray, ...]:
    # Time and size only key the cache: a name can come back with other rows when a run resumes in its own folder.
    del mtime_ns, size
    table = pq.ParquetFile(path).read(columns=list(names))
    known = frozenset(table.column_names)
    return tuple(_to_numpy(table.column(name)) if name in known else np.full(len(table), np.nan) for name in names)


def _to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_fixed_size_list(column.type):
        rows = [part.flatten().to_numpy(zero_copy_only=False).reshape(len(part), -1) for part in column.chunks]
        return np.concatenate(rows) if rows else np.empty((0, column.type.list_size))
    return column.to_numpy()
