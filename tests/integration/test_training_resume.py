"""Exact resume: stop or kill a run anywhere, go on from its newest checkpoint: nothing differs from a run left alone.

On the CPU, with the same number of workers and threads, to the last bit: losses, loads, spikes, evaluations, weights
and optimizer states.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training import (
    STEP_TOKENS,
    Finished,
    by_other_code,
    exact_columns,
    request,
    run_training,
    train_config,
)
from trainer.checkpoint_manifest import newest_valid_checkpoint
from trainer.config import TrainConfig

NUM_STEPS = 20
CADENCE = {"evaluate_every_tokens": 6 * STEP_TOKENS, "checkpoint_every_tokens": 4 * STEP_TOKENS, "log_every_steps": 3}
RUNGS = (5 * STEP_TOKENS, 10 * STEP_TOKENS)


def config() -> TrainConfig:
    return train_config(num_steps=NUM_STEPS, loop=CADENCE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run that nothing interrupts."""
    return run_training(config(), tmp_path_factory.mktemp("whole"), rung_tokens=RUNGS)


def assert_same_results(found: Finished, expected: Finished) -> None:
    assert found.last.kind == expected.last.kind == "finished"
    for mine, theirs in ((found.weights(), expected.weights()), (found.optimizer(), expected.optimizer())):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert found.last.evaluation == expected.last.evaluation
    assert comparable(found.last.summary) == comparable(expected.last.summary)


def assert_same_telemetry(found: Finished, expected: Finished) -> None:
    for kind in ("scalars", "router", "evaluations"):
        assert exact_columns(found.table(kind)).equals(exact_columns(expected.table(kind))), kind


def comparable(summary: Any) -> dict[str, Any]:
    return summary.model_dump(exclude={"tokens_per_s", "training_duration_s"})


@pytest.mark.parametrize("stop_step", [1, 4, 7, 9, 13, 19])
def test_I5_stop_anywhere_and_go_on_in_the_same_folder(tmp_path: Path, whole: Finished, stop_step: int):
    stopped = run_training(config(), tmp_path, stop_at_tokens=stop_step * STEP_TOKENS, rung_tokens=RUNGS)
    assert (stopped.last.kind, stopped.last.step) == ("stopped", stop_step)
    assert stopped.last.checkpoint is not None
    resumed = run_training(config(), tmp_path, resume_from=stopped.last.checkpoint.folder, rung_tokens=RUNGS)
    assert_same_results(resumed, whole)
    assert_same_telemetry(resumed, whole)


@pytest.mark.parametrize(("precision", "num_threads"), [("bf16_autocast", 1), ("fp32", 2)])
def test_other_precisions_and_threads_are_resumed_exactly_too(tmp_path: Path, precision: str, num_threads: int):
    other = train_config(num_steps=8, precision={"kind": precision})
    expected = run_training(other, tmp_path / "whole", num_threads=num_threads)
    stopped = run_training(other, tmp_path / "run", num_threads=num_threads, stop_at_tokens=3 * STEP_TOKENS)
    assert stopped.last.checkpoint is not None
    resumed = run_training(other, tmp_path / "run", num_threads=num_threads, resume_from=stopped.last.checkpoint.folder)
    assert_same_results(resumed, expected)
    assert_same_telemetry(resumed, expected)


def test_balancing_over_the_whole_step_is_resumed_exactly_too(tmp_path: Path):
    model = train_config().model.model_dump(mode="json")
    model["moe"] |= {
        "balancing": [
            {"kind": "load_balancing_loss", "coefficient": 0.01, "scope": "global_batch"},
            {"kind": "quantile_balancing", "smoothing": 0.5},
        ],
        "router": {"kind": "top_k", "input_jitter": 0.1},
    }
    other = train_config(num_steps=8, model=model)
    expected = run_training(other, tmp_path / "whole")
    stopped = run_training(other, tmp_path / "run", stop_at_tokens=3 * STEP_TOKENS)
    assert stopped.last.checkpoint is not None
    resumed = run_training(other, tmp_path / "run", resume_from=stopped.last.checkpoint.folder)
    assert_same_results(resumed, expected)
    assert_same_telemetry(resumed, expected)


@pytest.mark.parametrize(
    "moe",
    [
        {"capacity": {"factor": 1.0, "drop": "probability"}},
        {"capacity": {"factor": 0.75, "drop": "position"}, "num_null_experts": 2, "null_expert": "identity"},
        {
            "every": 2,
            "num_shared_experts": 1,
            "shared_gate": True,
            "expert_bias": True,
            "activation": "clamped_swiglu",
            "output_scale": {"init": 2.0},
            "router": {"kind": "top_k", "bias": True},
        },
    ],
    ids=["dropping", "dropping-and-null-experts", "biases-gate-and-scale"],
)
def test_other_mixtures_are_resumed_exactly_too(tmp_path: Path, moe: dict[str, Any]):
    model = train_config().model.model_dump(mode="json")
    model["moe"] |= moe
    other = train_config(num_steps=6, model=model)
    expected = run_training(other, tmp_path / "whole")
    stopped = run_training(other, tmp_path / "run", stop_at_tokens=2 * STEP_TOKENS)
    assert stopped.last.checkpoint is not None
    resumed = run_training(other, tmp_path / "run", resume_from=stopped.last.checkpoint.folder)
    assert_same_results(resumed, expected)
    assert_same_telemetry(resumed, expected)


def test_going_on_in_another_folder_leaves_the_first_as_it_was(tmp_path: Path, whole: Finished):
    first = run_training(config(), tmp_path / "first", stop_at_tokens=9 * STEP_TOKENS, rung_tokens=RUNGS)
    before = {path: path.read_bytes() for path in (tmp_path / "first").rglob("*") if path.is_file()}
    assert first.last.checkpoint is not None
    second = run_training(config(), tmp_path / "second", resume_from=first.last.checkpoint.folder, rung_tokens=RUNGS)
    assert {path: path.read_bytes() for path in (tmp_path / "first").rglob("*") if path.is_file()} == before
    assert_same_results(second, whole)
    assert second.table("scalars")["step"].to_pylist() == list(range(10, NUM_STEPS + 1))


def test_other_code_does_not_go_on_with_a_run_unless_any_may(tmp_path: Path, whole: Finished):
    stopped = run_training(config(), tmp_path / "run", stop_at_tokens=9 * STEP_TOKENS, rung_tokens=RUNGS)
    assert stopped.last.checkpoint is not None
    theirs = tmp_path / "step-00000009"
    by_other_code(Path(stopped.last.checkpoint.folder), theirs, code_fingerprint="another")
    refused = run_training(config(), tmp_path / "refused", resume_from=str(theirs), rung_tokens=RUNGS)
    assert (refused.last.kind, refused.last.step) == ("failed", 0)
    assert "was written by other code (code fingerprint: checkpoint another" in str(refused.last.message)
    resumed = run_training(config(), tmp_path / "any", resume_from=str(theirs), any_code=True, rung_tokens=RUNGS)
    assert_same_results(resumed, whole)


def test_I3_I4_resume_from_an_older_checkpoint_writes_the_later_steps_anew(tmp_path: Path, whole: Finished):
    run_training(config(), tmp_path, rung_tokens=RUNGS)
    resumed = run_training(
        config(), tmp_path, resume_from=str(tmp_path / "checkpoints" / "step-00000008"), rung_tokens=RUNGS
    )
    assert_same_results(resumed, whole)
    assert_same_telemetry(resumed, whole)


def test_resume_at_a_rung_reports_it_again_first(tmp_path: Path, whole: Finished):
    stopped = run_training(config(), tmp_path / "a", stop_at_tokens=RUNGS[0], rung_tokens=RUNGS)
    assert stopped.last.checkpoint is not None
    resumed = run_training(config(), tmp_path / "b", resume_from=stopped.last.checkpoint.folder, rung_tokens=RUNGS)
    started, again = resumed.reports[:2]
    (rung,) = [report for report in whole.reports if report.rung == 0]
    assert (started.kind, started.step) == ("started", 5)
    assert (again.kind, again.rung, again.step) == ("progress", 0, 5)
    assert again.evaluation == rung.evaluation
    assert again.checkpoint is not None
    assert again.checkpoint.manifest_sha256 == stopped.last.checkpoint.manifest_sha256
    assert [report.rung for report in resumed.reports if report.rung is not None] == [0, 1]


def test_rung_that_is_new_at_the_resume_is_evaluated_there(tmp_path: Path, whole: Finished):
    loop = {"checkpoint_every_tokens": 4 * STEP_TOKENS}
    plain = train_config(num_steps=NUM_STEPS, loop=loop)
    stopped = run_training(plain, tmp_path / "a", stop_at_tokens=5 * STEP_TOKENS)
    assert stopped.last.evaluation is None
    assert stopped.last.checkpoint is not None
    resumed = run_training(
        plain, tmp_path / "b", resume_from=stopped.last.checkpoint.folder, rung_tokens=(5 * STEP_TOKENS,)
    )
    (rung,) = [report for report in whole.reports if report.rung == 0]
    assert resumed.reports[1].rung == 0
    assert resumed.reports[1].evaluation == rung.evaluation


def test_resume_at_the_end_finishes_again_with_the_same_summary(tmp_path: Path, whole: Finished):
    assert whole.last.checkpoint is not None
    again = run_training(config(), tmp_path, resume_from=whole.last.checkpoint.folder, rung_tokens=RUNGS)
    assert [report.kind for report in again.reports] == ["started", "finished"]
    assert comparable(again.last.summary) == comparable(whole.last.summary)
    assert again.last.evaluation == whole.last.evaluation


def test_training_time_adds_up_over_the_runs_of_a_trial(tmp_path: Path):
    stopped = run_training(config(), tmp_path, stop_at_tokens=9 * STEP_TOKENS)
    first_s = stopped.table("scalars")["throughput/step_duration_s"].to_numpy().sum()
    assert stopped.last.checkpoint is not None
    resumed = run_training(config(), tmp_path, resume_from=stopped.last.checkpoint.folder)
    assert resumed.last.summary is not None
    assert resumed.last.summary.training_duration_s > first_s


_CHILD = """
import sys
from pathlib import Path
from trainer.config.run import RunRequest
from trainer.worker import run

request = RunRequest.model_validate_json(Path(sys.argv[1]).read_text())
run(request, lambda report: print(report.kind, report.step, flush=True))
"""


@pytest.mark.parametrize("kill_at_ms", [40, 230, 610])
def test_I3_I4_I5_killed_process_is_resumed_exactly(tmp_path: Path, kill_at_ms: int):
    """SIGKILL at some moment after the first step, wherever that may hit: a step, an evaluation, a write."""
    long = train_config(num_steps=60, loop=CADENCE | {"checkpoint_every_tokens": 2 * STEP_TOKENS})
    expected = run_training(long, tmp_path / "whole")
    folder = tmp_path / "killed"
    (tmp_path / "request.json").write_text(request(long, folder).model_dump_json())
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(tmp_path / "request.json")], stdout=subprocess.PIPE, env=os.environ | {}
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(b"progress 2"):
            break
    try:
        child.wait(timeout=kill_at_ms / 1000)
    except subprocess.TimeoutExpired:
        os.kill(child.pid, signal.SIGKILL)
    child.stdout.close()
    child.wait(timeout=30)

    checkpoint = newest_valid_checkpoint(folder)
    assert checkpoint is not None
    resumed = run_training(long, folder, resume_from=str(checkpoint))
    assert_same_results(resumed, expected)
    assert_same_telemetry(resumed, expected)
    assert not list(folder.rglob("*.tmp-*"))


def test_spikes_are_the_same_after_a_resume(tmp_path: Path):
    """A run with a learning rate at its limit spikes; stopping it in the middle of that changes no event."""
    spiky = train_config(
        num_steps=150,
        optimizer={"lr": 0.08},
        schedule={"kind": "wsd", "warmup_fraction": 0.0, "decay_fraction": 0.0},
        loop={"max_grad_norm": None, "global_batch_size": 2, "micro_batch_size": 2, "budget_tokens": 150 * 32},
        data={"mixture": {"legal": 1, "code_python": 1}},
    )

    def spikes(folder: Path) -> list[dict[str, Any]]:
        path = folder / "spikes.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        # A run that was stopped has one checkpoint more to name.
        left_out = {"time_ms", "checkpoint_step"}
        return [{key: value for key, value in line.items() if key not in left_out} for line in lines]

    run_training(spiky, tmp_path / "whole")
    expected = spikes(tmp_path / "whole")
    assert expected, "this test needs a run that spikes"
    stop_step = expected[0]["step"]
    stopped = run_training(spiky, tmp_path / "resumed", stop_at_tokens=stop_step * 32)
    assert stopped.last.checkpoint is not None
    resumed = run_training(spiky, tmp_path / "resumed", resume_from=stopped.last.checkpoint.folder)
    assert spikes(tmp_path / "resumed") == expected
    assert resumed.last.summary is not None
    assert resumed.last.summary.num_spikes == len(expected)
