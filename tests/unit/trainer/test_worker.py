"""The worker's verdicts: what is a failure of the run, what is not, and that a process can be used again."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.support.training import DIVERGING, STEP_TOKENS, exact_columns, request, run_training, train_config
from trainer.config.run import RunReport
from trainer.data.manifest import EMBEDDED
from trainer.errors import DataInvalid, OutOfMemory, ResumeMismatch, TrainingDiverged
from trainer.worker import classify, run
from trainer.world import World


def test_folder_says_what_ran(tmp_path: Path):
    config = train_config(num_steps=2)
    run_training(config, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == {"config": config.model_dump(mode="json"), "fingerprint": config.fingerprint()}
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["torch_version"] == str(torch.__version__)
    assert environment["world_size"] == environment["num_threads"] == 1
    assert environment["device"] == "cpu"
    assert len(environment["data_fingerprint"]) == 64
    assert environment["device_name"]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (TrainingDiverged("step 3: loss nan"), "diverged"),
        (OutOfMemory("too big"), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (DataInvalid("books is altered"), "data_invalid"),
        (ResumeMismatch("lr differs"), "error"),
        (ValueError("batch"), "error"),
    ],
)
def test_errors_have_their_cause(error: Exception, cause: str):
    found, message = classify(error)
    assert found == cause
    assert message


def test_memory_that_cannot_be_had_is_reported_as_such(tmp_path: Path):
    model = train_config().model.model_dump(mode="json")
    model |= {"dim": 65_536, "num_layers": 512, "hidden_dim": 262_144, "vocab_size": 1_000_000, "moe": None}
    finished = run_training(train_config(model=model), tmp_path)
    assert (finished.last.kind, finished.last.cause) == ("failed", "out_of_memory")
    assert "micro_batch_size" in (finished.last.message or "")


def test_unexpected_error_is_reported_with_where_it_happened(tmp_path: Path):
    finished = run_training(train_config(), tmp_path, resume_from=str(tmp_path / "nowhere"))
    assert (finished.last.kind, finished.last.cause, finished.last.step) == ("failed", "error", 0)
    assert "CheckpointInvalid" in (finished.last.message or "")
    assert "nowhere" in (finished.last.message or "")


def test_several_workers_without_a_process_group_fail_and_raise(tmp_path: Path):
    reports: list[RunReport] = []
    with pytest.raises(ValueError, match="init_process_group"):
        run(request(train_config(), tmp_path, num_workers=2), reports.append)
    assert (reports[-1].kind, reports[-1].cause) == ("failed", "error")


def test_a_process_group_taken_away_is_no_verdict_on_the_run(tmp_path: Path):
    reports: list[RunReport] = []
    dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    left_over = World.of_process_group(torch.device("cpu"))
    dist.destroy_process_group()
    with pytest.raises(ValueError, match="process group"):
        run(request(train_config(), tmp_path, num_workers=2), reports.append, left_over)
    assert not [report for report in reports if report.kind == "failed"]


def test_altered_corpus_is_reported_as_invalid_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    altered = tmp_path / "embedded"
    altered.mkdir()
    for path in EMBEDDED.iterdir():
        if path.is_file():
            (altered / path.name).write_bytes(path.read_bytes())
    content = bytearray((altered / "legal.jsonl.xz").read_bytes())
    content[len(content) // 2] ^= 1
    (altered / "legal.jsonl.xz").write_bytes(content)
    monkeypatch.setattr("trainer.data.manifest.EMBEDDED", altered)
    reports: list[RunReport] = []
    run(
        request(train_config(), tmp_path / "run").model_copy(update={"cache_folder": str(tmp_path / "cache")}),
        reports.append,
    )
    assert (reports[-1].kind, reports[-1].cause) == ("failed", "data_invalid")
    assert "legal" in (reports[-1].message or "")


def test_gpu_that_is_not_there_is_an_error_and_not_a_fallback(tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    finished = run_training(train_config(), tmp_path, use_gpu=True)
    assert finished.last.kind == "failed"
    assert "no CUDA device" in (finished.last.message or "")


def test_report_that_cannot_be_delivered_is_no_verdict_on_the_run(tmp_path: Path):
    class DriverGone(Exception):
        pass

    delivered: list[RunReport] = []

    def report(report: RunReport) -> None:
        if report.kind == "progress":
            raise DriverGone
        delivered.append(report)

    with pytest.raises(DriverGone):
        run(request(train_config(), tmp_path), report)
    assert [report.kind for report in delivered] == ["started"]


def test_disk_that_fails_is_no_verdict_on_the_run(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "telemetry").write_text("a file where a folder must be")
    reports: list[RunReport] = []
    with pytest.raises(OSError):
        run(request(train_config(), tmp_path / "run"), reports.append)
    assert "failed" not in [report.kind for report in reports]


def test_stop_file_written_before_the_start_ends_the_run_at_once_with_a_checkpoint(tmp_path: Path):
    (tmp_path / "stop").touch()
    finished = run_training(train_config(), tmp_path)
    assert (finished.last.kind, finished.last.step) == ("stopped", 0)
    assert finished.last.checkpoint is not None


def test_second_run_of_a_process_is_like_the_first(tmp_path: Path):
    """The first run leaves nothing behind that the next would see: its results equal those of another first run."""
    other = train_config(
        num_steps=5, seed=3, model={**train_config().model.model_dump(mode="json"), "moe": None}, **DIVERGING
    )
    first = run_training(train_config(), tmp_path / "first")
    torch.rand(3)
    run_training(other, tmp_path / "other")
    second = run_training(train_config(), tmp_path / "second")
    for kind in ("scalars", "router", "evaluations"):
        assert exact_columns(first.table(kind)).equals(exact_columns(second.table(kind)))
    for name, tensor in first.weights().items():
        assert torch.equal(tensor, second.weights()[name])


def test_process_is_left_as_it_was(tmp_path: Path):
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    run_training(train_config(num_steps=2), tmp_path, num_threads=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_failed_run_says_how_far_it_came(tmp_path: Path):
    finished = run_training(train_config(num_steps=40, loop={"log_every_steps": 1}, **DIVERGING), tmp_path)
    assert finished.last.kind == "failed"
    assert finished.last.tokens == finished.last.step * STEP_TOKENS
