"""Replay: a run executed again is bit for bit the one on record, or the first thing that is not is named."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.training import DIVERGING, STEP_TOKENS, by_other_code, request, run_training, train_config
from trainer.checkpoint_manifest import MANIFEST_FILE, newest_valid_checkpoint
from trainer.config import TrainConfig
from trainer.config.run import RunReport
from trainer.data.shards import default_cache_dir
from trainer.recorded_run import Difference, NotRecorded
from trainer.replay import ReplayFailed, Verdict, replay
from trainer.run_folder import write_config
from trainer.worker import run

NUM_STEPS = 20
LOOP = {"checkpoint_every_tokens": 6 * STEP_TOKENS, "evaluate_every_tokens": 5 * STEP_TOKENS, "log_every_steps": 3}


class Killed(BaseException):
    """Takes the run out of the world wherever it is, as SIGKILL would: nothing of ours catches it."""


def config(**sections: Any) -> TrainConfig:
    return train_config(num_steps=NUM_STEPS, loop=LOOP, **sections)


def replayed(folder: Path, scratch: Path, **fields: Any) -> Verdict:
    scratch.mkdir()
    return replay(folder, scratch, cache_folder=default_cache_dir(), **fields)


def kill_at(config: TrainConfig, folder: Path, step: int) -> None:
    """Runs until the report of `step` is to be delivered, and no further."""

    def report(report: RunReport) -> None:
        if report.step >= step:
            raise Killed

    with pytest.raises(Killed):
        run(request(config, folder), report)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_training(config(), tmp_path_factory.mktemp("whole")).folder


@pytest.fixture
def recorded(whole: Path, tmp_path: Path) -> Path:
    """A run that a test may change."""
    return shutil.copytree(whole, tmp_path / "recorded")


def rewritten(path: Path, column: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replaces a column of a chunk."""
    table = pq.read_table(path)
    values = change(table[column].to_numpy().copy())
    index = table.column_names.index(column)
    pq.write_table(table.set_column(index, column, pa.array(values, table.schema.field(column).type)), path)


def test_run_is_replayed_identically_from_its_beginning(recorded: Path, tmp_path: Path):
    verdict = replayed(recorded, tmp_path / "scratch")
    assert verdict.identical
    assert (verdict.first_step, verdict.last_step, verdict.started_from) == (1, NUM_STEPS, None)
    assert verdict.num_checkpoints == len(list((recorded / "checkpoints").iterdir()))
    assert verdict.environment == ()


def test_run_that_was_killed_and_resumed_is_replayed_identically(tmp_path: Path):
    folder = tmp_path / "recorded"
    kill_at(config(), folder, 10)
    checkpoint = newest_valid_checkpoint(folder)
    assert checkpoint is not None
    assert checkpoint.name == "step-00000006"
    run_training(config(), folder, resume_from=str(checkpoint))
    verdict = replayed(folder, tmp_path / "scratch")
    assert verdict.identical
    assert (verdict.first_step, verdict.last_step) == (1, NUM_STEPS)


def test_run_that_went_back_for_a_spike_is_replayed_identically(tmp_path: Path):
    """Its steps between the checkpoint and the spike are on record once: as they were done the second time."""
    spiky = train_config(
        num_steps=150,
        optimizer={"lr": 0.08},
        schedule={"kind": "wsd", "warmup_fraction": 0.0, "decay_fraction": 0.0},
        data={"mixture": {"legal": 1, "code_python": 1}},
        loop={
            "max_grad_norm": None,
            "global_batch_size": 2,
            "micro_batch_size": 2,
            "budget_tokens": 150 * 32,
            "checkpoint_every_tokens": 30 * 32,
            "on_spike": {"kind": "rewind", "metric": "optimizer/grad_norm", "num_skipped_steps": 3},
        },
    )
    recorded = run_training(spiky, tmp_path / "recorded")
    lines = [path.read_text() for path in recorded.folder.glob("*.jsonl")]
    assert any("rewind" in text or "rewound" in text for text in lines), "this test needs a run that goes back"
    for name, first in (("whole", None), ("part", 100)):
        verdict = replayed(recorded.folder, tmp_path / name, first_step=first)
        assert verdict.identical, verdict.difference
        assert verdict.last_step == 150


def test_folder_of_a_later_run_of_a_trial_is_replayed_from_the_beginning(tmp_path: Path):
    first = run_training(config(), tmp_path / "first", stop_at_tokens=8 * STEP_TOKENS)
    assert first.last.checkpoint is not None
    run_training(config(), tmp_path / "second", resume_from=first.last.checkpoint.folder)
    verdict = replayed(tmp_path / "second", tmp_path / "scratch")
    assert verdict.identical
    assert (verdict.first_step, verdict.started_from) == (9, None)


@pytest.mark.parametrize(("first", "start"), [(6, None), (7, 6), (14, 12), (NUM_STEPS, 18)])
def test_replay_goes_on_from_the_newest_checkpoint_before(
    recorded: Path, tmp_path: Path, first: int, start: int | None
):
    verdict = replayed(recorded, tmp_path / "scratch", first_step=first)
    assert verdict.identical
    assert (verdict.first_step, verdict.last_step, verdict.started_from) == (first, NUM_STEPS, start)


def test_damaged_checkpoint_is_not_started_from(recorded: Path, tmp_path: Path):
    weights = recorded / "checkpoints" / "step-00000012" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert replayed(recorded, tmp_path / "scratch", first_step=14).started_from == 6


def test_checkpoint_of_other_code_is_replayed_from(recorded: Path, tmp_path: Path):
    """What other code makes of it is what a replay is for."""
    mine = recorded / "checkpoints" / "step-00000012"
    theirs = by_other_code(mine, tmp_path / "theirs", code_fingerprint="another")
    (mine / MANIFEST_FILE).write_bytes((theirs / MANIFEST_FILE).read_bytes())
    verdict = replayed(recorded, tmp_path / "scratch", first_step=14)
    assert (verdict.identical, verdict.started_from) == (True, 12)


def test_part_of_a_run_is_replayed_no_further_than_asked(recorded: Path, tmp_path: Path):
    verdict = replayed(recorded, tmp_path / "scratch", first_step=8, last_step=11)
    assert verdict.identical
    assert (verdict.first_step, verdict.last_step) == (8, 11)


@pytest.mark.parametrize("column", ["train/loss", "optimizer/grad_norm", "optimizer/lr"])
def test_last_bit_of_a_value_on_record_is_found_at_its_step(recorded: Path, tmp_path: Path, column: str):
    (path,) = (recorded / "telemetry").glob("scalars-00000007-*.parquet")
    before = pq.read_table(path)[column].to_pylist()[2]

    def nudge(values: np.ndarray) -> np.ndarray:
        values[2] = np.nextafter(values[2], np.inf)
        return values

    rewritten(path, column, nudge)
    difference = replayed(recorded, tmp_path / "scratch").difference
    assert difference == Difference(9, column, None, np.nextafter(before, np.inf), before)


def test_one_token_sent_elsewhere_is_found_at_its_step_and_layer(recorded: Path, tmp_path: Path):
    (path,) = (recorded / "telemetry").glob("router-00000013-*.parquet")
    table = pq.read_table(path)
    loads = [list(row) for row in table["router/load"].to_pylist()]
    row = 2 * 2 + 1  # step 15, second layer
    loads[row][0] += 1
    loads[row][1] -= 1
    index = table.column_names.index("router/load")
    changed = pa.array(loads, table.schema.field("router/load").type)
    pq.write_table(table.set_column(index, "router/load", changed), path)
    difference = replayed(recorded, tmp_path / "scratch", first_step=14).difference
    assert difference is not None
    assert (difference.step, difference.quantity, difference.layer) == (15, "router/load", 1)
    assert difference.recorded == loads[row]


def test_weights_that_are_not_as_stored_are_found_at_their_checkpoint(recorded: Path, tmp_path: Path):
    """Telemetry says nothing of the update after the last step."""
    other = run_training(config(seed=1), tmp_path / "other").folder
    last = Path("checkpoints") / f"step-{NUM_STEPS:08d}"
    for path in (recorded / last).iterdir():
        path.write_bytes((other / last / path.name).read_bytes())
    difference = replayed(recorded, tmp_path / "scratch").difference
    assert difference is not None
    assert (difference.step, difference.quantity) == (NUM_STEPS, "model.safetensors")


def test_changed_learning_rate_is_the_first_thing_that_differs(recorded: Path, tmp_path: Path):
    write_config(recorded, config(optimizer={"lr": 0.02}))
    difference = replayed(recorded, tmp_path / "scratch").difference
    assert difference is not None
    assert (difference.step, difference.quantity) == (1, "optimizer/lr")
    assert difference.replayed == pytest.approx(2 * difference.recorded)


def test_changed_schedule_is_found_where_it_parts_from_the_recorded_one(tmp_path: Path):
    wsd = {"kind": "wsd", "warmup_fraction": 0.1}
    folder = run_training(config(schedule=wsd | {"decay_fraction": 0.2}), tmp_path / "recorded").folder
    write_config(folder, config(schedule=wsd | {"decay_fraction": 0.4}))
    difference = replayed(folder, tmp_path / "scratch").difference
    assert difference is not None
    assert (difference.step, difference.quantity) == (13, "optimizer/lr")


def test_environment_that_differs_is_told_before_the_first_step_and_with_the_verdict(recorded: Path, tmp_path: Path):
    path = recorded / "environment.json"
    environment = json.loads(path.read_text())
    path.write_text(json.dumps(environment | {"torch_version": "1.0", "num_threads": 2}))
    told: list[Any] = []

    def on_environment(differences: Any) -> None:
        assert not list((tmp_path / "scratch").glob("telemetry/*.parquet"))
        told.append(differences)

    verdict = replayed(recorded, tmp_path / "scratch", num_threads=1, on_environment=on_environment)
    assert told == [verdict.environment]
    assert [(each.name, each.recorded) for each in verdict.environment] == [
        ("torch_version", "1.0"),
        ("num_threads", 2),
    ]


def test_run_that_diverged_is_replayed_to_its_end(tmp_path: Path):
    """Values that are no numbers are as recorded, too."""
    folder = run_training(config(**DIVERGING), tmp_path / "recorded").folder
    verdict = replayed(folder, tmp_path / "scratch")
    assert verdict.identical
    assert verdict.last_step < NUM_STEPS


def test_run_that_cannot_be_executed_gets_no_verdict(recorded: Path, tmp_path: Path):
    write_config(recorded, config(start={"kind": "checkpoint", "path": "/nowhere"}))
    with pytest.raises(ReplayFailed, match=r"step 0 of 20.*start\.path=/nowhere"):
        replayed(recorded, tmp_path / "scratch")


@pytest.mark.parametrize(
    "fields", [{"first_step": NUM_STEPS + 1}, {"first_step": 9, "last_step": 8}, {"last_step": 99}]
)
def test_steps_that_are_not_on_record_are_refused(recorded: Path, tmp_path: Path, fields: dict[str, int]):
    with pytest.raises(NotRecorded, match="steps 1 to 20 on record"):
        replayed(recorded, tmp_path / "scratch", **fields)


def test_command_says_identical_or_diverged_by_its_status(recorded: Path):
    def command(*more: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-m", "trainer", "replay", str(recorded), "--from", "15", *more]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=120)

    same = command("--json")
    assert same.returncode == 0, same.stderr
    assert json.loads(same.stdout)["identical"] is True
    (path,) = (recorded / "telemetry").glob("scalars-00000013-*.parquet")
    rewritten(path, "train/loss", lambda values: values + 1.0)
    other = command()
    assert other.returncode == 1, other.stderr
    assert "diverged at step 15: train/loss" in other.stdout


def test_folder_that_holds_no_run_is_refused(tmp_path: Path):
    with pytest.raises(NotRecorded, match="no run's folder"):
        replayed(tmp_path, tmp_path / "scratch")
