"""Reading telemetry: canonical runs, the common grid, loads, evaluations, spikes, chunks that come and go."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.tracking.loads import encode_loads, load_history, loads_at
from orchestrator.tracking.series import (
    RunFolder,
    Source,
    evaluations,
    moe_layers,
    query_series,
    spikes,
)
from trainer.metrics.catalog import ROUTER_SCALARS, SCALARS

LAYERS, EXPERTS = (1, 3), 4


def write_scalars(folder: Path, steps: range, losses: list[float] | None = None) -> None:
    """One chunk of scalars; the loss is the step unless given. A step has 10 tokens and takes a second."""
    table = {"step": list(steps), "tokens": [10 * s for s in steps], "time_ms": [1000 * s for s in steps]}
    table |= {name: [0.0] * len(steps) for name in SCALARS}
    table["train/loss"] = losses if losses is not None else [float(step) for step in steps]
    write(folder, "scalars", steps, pa.table(table))


def write_router(folder: Path, steps: range) -> None:
    """One chunk of router telemetry: layer `l` at step `s` has every scalar at 100 l + s, and load [s, s, 0, 2 s]."""
    rows = [(step, layer) for step in steps for layer in LAYERS]
    table = {
        "step": pa.array([step for step, _ in rows]),
        "tokens": pa.array([10 * step for step, _ in rows]),
        "time_ms": pa.array([1000 * step for step, _ in rows]),
        "layer": pa.array([layer for _, layer in rows], pa.int32()),
    }
    table |= {name: pa.array([100.0 * layer + step for step, layer in rows], pa.float32()) for name in ROUTER_SCALARS}
    loads = np.array([[step, step, 0, 2 * step] for step, _ in rows], dtype=np.uint32)
    table["router/load"] = pa.FixedSizeListArray.from_arrays(pa.array(loads.reshape(-1)), EXPERTS)
    write(folder, "router", steps, pa.table(table))


def write_evaluation(folder: Path, step: int, bits_per_byte: float) -> None:
    """One chunk with one evaluation of two domains."""
    table = {
        "step": [step] * 2,
        "tokens": [10 * step] * 2,
        "time_ms": [1000 * step] * 2,
        "domain": ["all", "legal"],
        "eval/bits_per_byte": [bits_per_byte, bits_per_byte + 1],
        "eval/loss": [bits_per_byte * 2, bits_per_byte * 2 + 1],
    }
    write(folder, "evaluations", range(step, step + 1), pa.table(table))


def write(folder: Path, kind: str, steps: range, table: pa.Table) -> None:
    """Writes a chunk under its name."""
    (folder / "telemetry").mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "telemetry" / f"{kind}-{steps[0]:08d}-{steps[-1]:08d}.parquet")


def trial(*folders: Path) -> Source:
    """A trial with runs `run_0`, `run_1`, ... in these folders."""
    runs = tuple(RunFolder(f"run_{number}", folder) for number, folder in enumerate(folders))
    return Source(id="trl_0", runs=runs, flops_per_token=2.0)


def test_few_points_come_as_they_are(tmp_path: Path) -> None:
    write_scalars(tmp_path, range(1, 6))
    grid = query_series([trial(tmp_path)], ["train/loss"], points=5)
    assert grid.raw
    assert grid.x == [1, 2, 3, 4, 5]
    assert grid.series[0].min == grid.series[0].last == grid.series[0].max == [1, 2, 3, 4, 5]


def test_buckets_keep_the_extremes_and_the_last(tmp_path: Path) -> None:
    losses = [5.0] * 100
    losses[41], losses[59], losses[60] = 99.0, 7.0, -3.0
    write_scalars(tmp_path, range(0, 100), losses)
    grid = query_series([trial(tmp_path)], ["train/loss"], points=10)
    (series,) = grid.series
    assert not grid.raw
    assert len(grid.x) == len(series.last) == 10
    assert grid.x[-1] == 99
    assert max(value for value in series.max if value is not None) == 99.0
    assert min(value for value in series.min if value is not None) == -3.0
    assert series.last[5] == 7.0, "steps 49.5 to 59.4 end with step 59"
    assert series.num_rows == 100


def test_all_series_share_the_grid_and_gaps_are_none(tmp_path: Path) -> None:
    write_scalars(tmp_path / "a", range(1, 4))
    write_scalars(tmp_path / "b", range(3, 6))
    grid = query_series([trial(tmp_path / "a"), trial(tmp_path / "b")], ["train/loss"])
    assert grid.x == [1, 2, 3, 4, 5]
    assert [series.last for series in grid.series] == [[1, 2, 3, None, None], [None, None, 3, 4, 5]]


def test_values_that_are_not_finite_are_counted_and_left_out(tmp_path: Path) -> None:
    write_scalars(tmp_path, range(1, 5), [1.0, float("nan"), float("inf"), 4.0])
    (series,) = query_series([trial(tmp_path)], ["train/loss"]).series
    assert series.last == [1.0, None, None, 4.0]
    assert (series.num_rows, series.num_nonfinite) == (4, 2)


@pytest.mark.parametrize(
    ("x", "expected"), [("step", [1, 2]), ("tokens", [10, 20]), ("time", [0, 1]), ("flops", [20, 40])]
)
def test_x_axis_can_be_chosen(tmp_path: Path, x: str, expected: list[float]) -> None:
    write_scalars(tmp_path, range(1, 3))
    assert query_series([trial(tmp_path)], ["train/loss"], x=x).x == expected  # type: ignore[arg-type]


def test_range_selects_with_both_ends(tmp_path: Path) -> None:
    write_scalars(tmp_path, range(1, 101))
    grid = query_series([trial(tmp_path)], ["train/loss"], x_range=(10, 12))
    assert grid.x == [10, 11, 12]


def test_I4_later_run_replaces_the_earlier_from_its_first_step_on(tmp_path: Path) -> None:
    first, second = tmp_path / "run_0", tmp_path / "run_1"
    write_scalars(first, range(1, 5))
    write_scalars(first, range(5, 9))
    write_scalars(second, range(5, 7), [50.0, 60.0])
    grid = query_series([trial(first, second)], ["train/loss"])
    assert grid.x == [1, 2, 3, 4, 5, 6]
    assert grid.series[0].last == [1, 2, 3, 4, 50, 60]


def test_run_that_has_recorded_nothing_replaces_nothing(tmp_path: Path) -> None:
    write_scalars(tmp_path / "run_0", range(1, 4))
    write_evaluation(tmp_path / "run_1", 0, 8.0)
    grid = query_series([trial(tmp_path / "run_0", tmp_path / "run_1")], ["train/loss"])
    assert grid.x == [1, 2, 3]


def test_chunks_appear_and_vanish_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scalars(tmp_path, range(1, 3))
    write_scalars(tmp_path, range(3, 5))
    listed = list((tmp_path / "telemetry").iterdir())
    (tmp_path / "telemetry" / "scalars-00000003-00000004.parquet").unlink()
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(listed))
    assert query_series([trial(tmp_path)], ["train/loss"]).x == [1, 2]
    monkeypatch.undo()
    write_scalars(tmp_path, range(3, 6))
    (tmp_path / "telemetry" / ".scalars-00000006-00000007.parquet.tmp-1").write_bytes(b"half")
    assert query_series([trial(tmp_path)], ["train/loss"]).x == [1, 2, 3, 4, 5]


def test_chunk_of_the_same_name_with_other_rows_is_read_anew(tmp_path: Path) -> None:
    write_scalars(tmp_path, range(1, 3), [1.0, 2.0])
    query_series([trial(tmp_path)], ["train/loss"])
    write_scalars(tmp_path, range(1, 3), [7.0, 8.5])
    assert query_series([trial(tmp_path)], ["train/loss"]).series[0].last == [7.0, 8.5]


@pytest.mark.parametrize(
    ("metric", "layers", "expected"),
    [
        ("router/max_violation", "worst", [[301, 302]]),  # high is worse
        ("router/token_entropy", "worst", [[101, 102]]),  # low is worse
        ("router/load_cv", "mean", [[201, 202]]),
        ("router/load_cv", "each", [[101, 102], [301, 302]]),
    ],
)
def test_layers_of_a_router_metric(tmp_path: Path, metric: str, layers: str, expected: list[list[float]]) -> None:
    write_router(tmp_path, range(1, 3))
    grid = query_series([trial(tmp_path)], [metric], layers=layers)  # type: ignore[arg-type]
    assert [series.last for series in grid.series] == expected
    assert [series.layer for series in grid.series] == (list(LAYERS) if layers == "each" else [None])
    assert moe_layers(trial(tmp_path)) == list(LAYERS)


def test_dense_model_has_no_layers(tmp_path: Path) -> None:
    write_scalars(tmp_path, range(1, 3))
    assert moe_layers(trial(tmp_path)) == []
    assert query_series([trial(tmp_path)], ["router/load_cv"], layers="each").series == []
    assert load_history(trial(tmp_path)) is None
    assert loads_at(trial(tmp_path)) is None


def test_unknown_series_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no series 'train/los'; there are: train/loss"):
        query_series([trial(tmp_path)], ["train/los"])


def test_evaluations_come_per_domain_and_the_later_of_two_counts(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "run_0", 0, 8.0)
    write_evaluation(tmp_path / "run_0", 4, 5.0)
    write_evaluation(tmp_path / "run_1", 4, 5.5)
    source = trial(tmp_path / "run_0", tmp_path / "run_1")
    assert [(row.step, row.domain, row.bits_per_byte) for row in evaluations(source)] == [
        (0, "all", 8.0),
        (0, "legal", 9.0),
        (4, "all", 5.5),
        (4, "legal", 6.5),
    ]
    grid = query_series([source], ["eval/loss"])
    assert [(series.domain, series.last) for series in grid.series] == [("all", [16, 11]), ("legal", [17, 12])]


def test_loads_are_exact_at_a_step_or_the_last_before_it(tmp_path: Path) -> None:
    write_router(tmp_path / "run_0", range(1, 6))
    write_scalars(tmp_path / "run_0", range(1, 6))
    write_router(tmp_path / "run_1", range(4, 5))
    write_scalars(tmp_path / "run_1", range(4, 5))
    source = trial(tmp_path / "run_0", tmp_path / "run_1")
    snapshot = loads_at(source, 3)
    assert snapshot is not None
    assert (snapshot.run_id, snapshot.step, snapshot.tokens, snapshot.layers) == ("run_0", 3, 30, list(LAYERS))
    assert snapshot.counts == [[3, 3, 0, 6]] * 2
    newest = loads_at(source)
    assert newest is not None
    assert (newest.run_id, newest.step) == ("run_1", 4)
    assert loads_at(source, 0) is None


def test_load_history_covers_all_steps_in_few_frames(tmp_path: Path) -> None:
    write_router(tmp_path, range(1, 6))
    write_router(tmp_path, range(6, 11))
    history = load_history(trial(tmp_path), points=5)
    assert history is not None
    assert history.steps == [2, 4, 6, 8, 10]
    assert history.tokens == [20, 40, 60, 80, 100]
    codes = np.frombuffer(history.codes, dtype=np.uint8).reshape(5, len(LAYERS), EXPERTS)
    # Loads [s, s, 0, 2 s] of a fair share s: fair, fair, dead, twice fair.
    np.testing.assert_array_equal(codes, np.broadcast_to([128, 128, 0, 160], codes.shape))


def test_load_codes_keep_the_ratio_to_fair_within_about_a_percent() -> None:
    rng = np.random.default_rng(0)
    loads = rng.integers(20, 300, size=(7, 3, 16))
    codes = encode_loads(loads).astype(float)
    ratio = loads / loads.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(2 ** ((codes - 128) / 32), ratio, rtol=0.0115)
    assert encode_loads(np.array([[[1, 10**6, 0]]])).tolist() == [[[1, 179, 0]]]


def test_spikes_of_superseded_steps_and_half_lines_are_left_out(tmp_path: Path) -> None:
    first, second = tmp_path / "run_0", tmp_path / "run_1"
    write_scalars(first, range(1, 9))
    write_scalars(second, range(5, 9))
    (first / "spikes.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in (3, 7)))
    (second / "spikes.jsonl").write_text(json.dumps({"step": 6}) + "\n" + '{"step": 8')
    assert spikes(trial(first, second)) == [{"run_id": "run_0", "step": 3}, {"run_id": "run_1", "step": 6}]


def test_layer_series_that_only_some_trials_record(tmp_path: Path) -> None:
    for name in ("plain", "quantized"):
        write_scalars(tmp_path / name, range(1, 3))
        write_router(tmp_path / name, range(1, 3))
    path = tmp_path / "quantized" / "telemetry" / "router-00000001-00000002.parquet"
    table = pq.read_table(path)
    key = "quantization/gradient_zero_fraction"
    pq.write_table(table.append_column(key, pa.array([0.25] * len(table), pa.float32())), path)
    grid = query_series([trial(tmp_path / "plain"), trial(tmp_path / "quantized")], [key], layers="each")
    assert [(series.layer, series.last) for series in grid.series] == [(layer, [0.25, 0.25]) for layer in LAYERS]
    worst = query_series([trial(tmp_path / "plain"), trial(tmp_path / "quantized")], [key]).series
    assert [series.num_rows for series in worst] == [0, 2]
