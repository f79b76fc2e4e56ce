"""Chunks hold exactly what was given, in files that are whole or absent."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.training import read_chunks
from trainer.config.run import DomainEvaluation
from trainer.metrics.catalog import ROUTER_SCALARS, SCALARS
from trainer.telemetry.chunks import ChunkWriter, StepBlock, delete_chunks_after


def block(first: int, num_steps: int, *, num_layers: int = 2, num_experts: int = 3) -> StepBlock:
    steps = np.arange(first, first + num_steps)
    generator = np.random.default_rng(first)
    return StepBlock(
        steps=steps,
        tokens=steps * 100,
        time_ms=steps + 10**12,
        scalars={name: generator.normal(size=num_steps) for name in SCALARS},
        router={name: generator.normal(size=(num_steps, num_layers)) for name in ROUTER_SCALARS} if num_layers else {},
        loads_E=generator.integers(0, 2**32, size=(num_steps, num_layers, num_experts)),
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "telemetry").iterdir())


def test_rows_come_back_exactly(tmp_path: Path):
    writer = ChunkWriter(tmp_path, layers=(1, 3))
    first, second = block(1, 2), block(3, 1)
    writer.add_steps(first)
    writer.add_steps(second)
    writer.write()
    assert names(tmp_path) == ["router-00000001-00000003.parquet", "scalars-00000001-00000003.parquet"]
    scalars, router = read_chunks(tmp_path, "scalars"), read_chunks(tmp_path, "router")
    assert scalars["step"].to_pylist() == [1, 2, 3]
    assert scalars["tokens"].to_pylist() == [100, 200, 300]
    for name in SCALARS:
        assert scalars[name].to_pylist() == [*first.scalars[name], *second.scalars[name]]
        assert scalars[name].type == pa.float64()
    assert router["step"].to_pylist() == [1, 1, 2, 2, 3, 3]
    assert router["layer"].to_pylist() == [1, 3, 1, 3, 1, 3]
    assert router["router/load"].to_pylist() == np.concatenate([first.loads_E, second.loads_E]).reshape(6, 3).tolist()
    assert router["router/load"].type.value_type == pa.uint32()
    assert (
        router["router/z"].to_pylist()
        == np.concatenate([first.router["router/z"], second.router["router/z"]]).astype(np.float32).reshape(-1).tolist()
    )


def test_dense_model_has_no_router_table(tmp_path: Path):
    writer = ChunkWriter(tmp_path, layers=())
    writer.add_steps(block(1, 2, num_layers=0, num_experts=0))
    writer.write()
    assert names(tmp_path) == ["scalars-00000001-00000002.parquet"]


def test_evaluations_have_a_row_per_domain(tmp_path: Path):
    writer = ChunkWriter(tmp_path, layers=())
    evaluation = {
        name: DomainEvaluation(bits_per_byte=bits, loss=2 * bits) for name, bits in (("a", 1.5), ("all", 2.5))
    }
    writer.add_evaluation(step=0, tokens=0, time_ms=5, evaluation=evaluation)
    writer.write()
    table = read_chunks(tmp_path, "evaluations")
    assert names(tmp_path) == ["evaluations-00000000-00000000.parquet"]
    assert table["domain"].to_pylist() == ["a", "all"]
    assert table["eval/bits_per_byte"].to_pylist() == [1.5, 2.5]
    assert table["eval/loss"].to_pylist() == [3.0, 5.0]


def test_nothing_new_writes_nothing(tmp_path: Path):
    writer = ChunkWriter(tmp_path, layers=(0,))
    writer.add_steps(block(1, 1, num_layers=1))
    writer.write()
    before = names(tmp_path)
    writer.write()
    assert names(tmp_path) == before


@pytest.mark.parametrize("step", [-1, 0, 4, 5, 9])
def test_only_chunks_after_the_step_are_deleted(tmp_path: Path, step: int):
    writer = ChunkWriter(tmp_path, layers=())
    for first in (1, 5):
        writer.add_steps(block(first, 4, num_layers=0))
        writer.write()
    (tmp_path / "telemetry" / ".scalars-00000009-00000010.parquet.tmp-1").write_bytes(b"half")
    delete_chunks_after(tmp_path, step)
    expected = {1: "scalars-00000001-00000004.parquet", 5: "scalars-00000005-00000008.parquet"}
    assert names(tmp_path) == [name for first, name in expected.items() if first <= step]
