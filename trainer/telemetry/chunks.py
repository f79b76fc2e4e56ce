"""Parquet chunks: the telemetry of a run as append-only files that are never rewritten.

A chunk `<table>-<first step>-<last step>.parquet` appears whole or not at all. Chunks are written right before every
checkpoint, so after a crash the rows up to the checkpoint are all there and the rest is in chunks of their own, which
a resume into the same folder deletes.

Letters: `S` steps of a block, `L` MoE layers, `E` experts.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer.config.run import DomainEvaluation
from trainer.durable import commit, temporary_name
from trainer.metrics.catalog import PROBE_SCALARS, QUANTIZATION_SCALARS, ROUTER_SCALARS, SCALARS, UPDATE_SCALARS

TELEMETRY_FOLDER = "telemetry"

_CHUNK_NAME = re.compile(r"(scalars|router|evaluations|probes)-(\d{8,})-(\d{8,})\.parquet")


@dataclass(frozen=True, eq=False)
class StepBlock:
    """Consecutive steps, ready to be written.

    Attributes:
        steps, tokens, time_ms: int64 [S].
        scalars: `catalog.SCALARS` name -> float64 [S]. Where updates are measured, those of `UPDATE_SCALARS` too.
        router: `catalog.ROUTER_SCALARS` name -> float64 [S, L]; empty for a dense model. Where the experts are
            quantised, those of `QUANTIZATION_SCALARS` too.
        loads_E: int64 [S, L, E].
    """

    steps: NDArray[np.int64]
    tokens: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    scalars: Mapping[str, NDArray[np.float64]]
    router: Mapping[str, NDArray[np.float64]]
    loads_E: NDArray[np.int64]


class _EvaluationRow(NamedTuple):
    step: int
    tokens: int
    time_ms: int
    domain: str
    figures: DomainEvaluation


class _ProbeRows(NamedTuple):
    step: int
    tokens: int
    time_ms: int
    values: Mapping[str, NDArray[np.float64]]


class ChunkWriter:
    """Collects rows and writes them as chunks into `folder/telemetry`.

    Args:
        folder: the run's folder.
        layers: index in the whole model of each MoE layer, ascending.
    """

    def __init__(self, folder: Path, *, layers: Sequence[int]) -> None:
        self._folder = folder / TELEMETRY_FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._layers = np.asarray(layers, dtype=np.int32)
        self._blocks: list[StepBlock] = []
        self._evaluations: list[_EvaluationRow] = []
        self._probes: list[_ProbeRows] = []

    def add_steps(self, block: StepBlock) -> None:
        """Take steps to be written with the next chunk."""
        self._blocks.append(block)

    def add_evaluation(
        self, *, step: int, tokens: int, time_ms: int, evaluation: Mapping[str, DomainEvaluation]
    ) -> None:
        """Take the figures of one evaluation, one row per domain."""
        self._evaluations += [
            _EvaluationRow(step, tokens, time_ms, domain, figures) for domain, figures in evaluation.items()
        ]

    def add_probe(self, *, step: int, tokens: int, time_ms: int, values: Mapping[str, NDArray[np.float64]]) -> None:
        """Take the figures of the probe set at one evaluation, `catalog.PROBE_SCALARS` name -> float64 [L]."""
        self._probes.append(_ProbeRows(step, tokens, time_ms, values))

    def discard(self) -> None:
        """Forget what was taken since the last call of `write`."""
        self._blocks.clear()
        self._evaluations.clear()
        self._probes.clear()

    def write(self) -> None:
        """Write what was taken since the last call, durably."""
        if self._blocks:
            steps = np.concatenate([block.steps for block in self._blocks])
            self._write_table("scalars", _scalar_table(self._blocks), int(steps[0]), int(steps[-1]))
            if len(self._layers):
                table = _router_table(self._blocks, self._layers)
                self._write_table("router", table, int(steps[0]), int(steps[-1]))
            self._blocks.clear()
        if self._evaluations:
            rows = self._evaluations
            self._write_table("evaluations", _evaluation_table(rows), rows[0].step, rows[-1].step)
            self._evaluations.clear()

        if self._probes:
            table = _probe_table(self._probes, self._layers)
            self._write_table("probes", table, self._probes[0].step, self._probes[-1].step)
            self._probes.clear()

    def _write_table(self, kind: str, table: pa.Table, first: int, last: int) -> None:
        path = self._folder / f"{kind}-{first:08d}-{last:08d}.parquet"
        temporary = temporary_name(path)
        pq.write_table(table, temporary, compression="zstd")
        commit(temporary, path)


def delete_chunks_after(folder: Path, step: int) -> None:
    """Delete the chunks of `folder/telemetry` that start after `step`, and what an interrupted write left."""
    for path in (folder / TELEMETRY_FOLDER).glob("*.parquet"):
        match = _CHUNK_NAME.fullmatch(path.name)
        if match and int(match[2]) > step:
            path.unlink()
    for path in (folder / TELEMETRY_FOLDER).glob(".*.tmp-*"):
        path.unlink()


def _scalar_table(blocks: Sequence[StepBlock]) -> pa.Table:
    columns = {
        "step": np.concatenate([block.steps for block in blocks]),
        "tokens": np.concatenate([block.tokens for block in blocks]),
        "time_ms": np.concatenate([block.time_ms for block in blocks]),
    }
    names = (*SCALARS, *(name for name in UPDATE_SCALARS if name in blocks[0].scalars))
    columns |= {name: np.concatenate([block.scalars[name] for block in blocks]) for name in names}
    return pa.table(columns)


def _router_table(blocks: Sequence[StepBlock], layers: NDArray[np.int32]) -> pa.Table:
    loads_E = np.concatenate([block.loads_E for block in blocks])
    num_steps, num_layers, num_experts = loads_E.shape
    columns: dict[str, pa.Array] = {
        name: pa.array(np.repeat(np.concatenate([getattr(block, attribute) for block in blocks]), num_layers))
        for name, attribute in (("step", "steps"), ("tokens", "tokens"), ("time_ms", "time_ms"))
    }
    columns["layer"] = pa.array(np.tile(layers, num_steps))
    for name in (*ROUTER_SCALARS, *(name for name in QUANTIZATION_SCALARS if name in blocks[0].router)):
        values = np.concatenate([block.router[name] for block in blocks])
        columns[name] = pa.array(values.reshape(-1).astype(np.float32))
    columns["router/load"] = pa.FixedSizeListArray.from_arrays(
        pa.array(loads_E.reshape(-1).astype(np.uint32)), num_experts
    )
    return pa.table(columns)


def _probe_table(rows: Sequence[_ProbeRows], layers: NDArray[np.int32]) -> pa.Table:
    columns = {
        name: pa.array(np.repeat([getattr(row, name) for row in rows], len(layers)))
        for name in ("step", "tokens", "time_ms")
    }
    columns["layer"] = pa.array(np.tile(layers, len(rows)))
    columns |= {name: pa.array(np.concatenate([row.values[name] for row in rows])) for name in PROBE_SCALARS}
    return pa.table(columns)


def _evaluation_table(rows: Sequence[_EvaluationRow]) -> pa.Table:
    return pa.table(
        {
            "step": pa.array([row.step for row in rows], pa.int64()),
            "tokens": pa.array([row.tokens for row in rows], pa.int64()),
            "time_ms": pa.array([row.time_ms for row in rows], pa.int64()),
            "domain": pa.array([row.domain for row in rows], pa.string()),
            "eval/bits_per_byte": pa.array([row.figures.bits_per_byte for row in rows], pa.float64()),
            "eval/loss": pa.array([row.figures.loss for row in rows], pa.float64()),
        }
    )
