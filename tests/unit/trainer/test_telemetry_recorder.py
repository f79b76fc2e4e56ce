"""The recorder takes in every step, ends at a divergence, and sums up the last steps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.training import STEP_TOKENS, read_chunks, train_config
from trainer.config.run import DomainEvaluation
from trainer.errors import TrainingDiverged
from trainer.metrics.throughput import TrainingClock
from trainer.telemetry.progress import Progress, read_progress
from trainer.telemetry.recorder import Telemetry, delete_telemetry_after
from trainer.telemetry.spike_events import Samples
from trainer.telemetry.tail import TailMeans
from trainer.world import World

DENSE = train_config(
    num_steps=100, model={**train_config().model.model_dump(mode="json"), "moe": None}, loop={"log_every_steps": 4}
)


def telemetry(folder: Path | None, *, seen: list[Progress] | None = None) -> Telemetry:
    return Telemetry(
        DENSE,
        folder=folder,
        layers=(),
        world=World(),
        clock=TrainingClock(),
        samples_of_step=lambda step: Samples(step, step, []),
        on_progress=(seen if seen is not None else []).append,
    )


def train_steps(recorder: Telemetry, losses: list[float], *, grad_norm: float = 1.0) -> None:
    for loss in losses:
        recorder.buffer.begin_step()
        recorder.buffer.add_micro_batch(loss=torch.tensor(loss), balancing_loss=None, routings=(), share=1.0)
        recorder.buffer.reduce_step()
        recorder.buffer.finish_step(grad_norm=torch.tensor(grad_norm), selection_bias_LE=None)
        recorder.step_done(lr=0.5)


def test_drain_is_due_at_the_interval_and_when_the_buffer_is_full(tmp_path: Path):
    recorder = telemetry(tmp_path)
    assert [step for step in range(1, 10) if recorder.drain_due(step)] == [4, 8]
    train_steps(recorder, [1.0] * 4)
    assert recorder.drain_due(5)
    assert not recorder.is_drained
    recorder.drain()
    assert recorder.is_drained


def test_steps_are_numbered_on_over_uneven_drains(tmp_path: Path):
    recorder = telemetry(tmp_path)
    for count in (1, 3, 2):
        train_steps(recorder, [2.0] * count)
        recorder.drain()
    recorder.close()
    table = read_chunks(tmp_path, "scalars")
    assert table["step"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert table["tokens"].to_pylist() == [step * STEP_TOKENS for step in range(1, 7)]
    assert table["optimizer/lr"].to_pylist() == [0.5] * 6
    assert len(set(table["throughput/step_duration_s"].to_pylist())) == 3


@pytest.mark.parametrize(
    ("losses", "grad_norm", "step"),
    [([1.0, float("nan"), 1.0], 1.0, 2), ([float("inf"), 1.0], 1.0, 1), ([1.0, 1.0], float("nan"), 1)],
)
def test_divergence_is_raised_with_its_step_and_nothing_after_it_is_recorded(
    tmp_path: Path, losses: list[float], grad_norm: float, step: int
):
    recorder = telemetry(tmp_path)
    train_steps(recorder, losses, grad_norm=grad_norm)
    with pytest.raises(TrainingDiverged, match=f"step {step}: loss {losses[step - 1]}"):
        recorder.drain()
    recorder.close()
    assert read_chunks(tmp_path, "scalars")["step"].to_pylist() == list(range(1, step + 1))


def test_worker_without_a_folder_sees_the_divergence_too():
    recorder = telemetry(None)
    train_steps(recorder, [float("nan")])
    with pytest.raises(TrainingDiverged):
        recorder.drain()


def test_progress_is_called_at_most_once_a_second_and_is_current_at_the_end(tmp_path: Path):
    seen: list[Progress] = []
    recorder = telemetry(tmp_path, seen=seen)
    for _ in range(3):
        train_steps(recorder, [2.0] * 4)
        recorder.drain()
    assert [progress.step for progress in seen] == [4]
    figures = DomainEvaluation(bits_per_byte=1.25, loss=2.0)
    recorder.add_evaluation({"all": figures}, step=12)
    recorder.close()
    progress = read_progress(tmp_path)
    assert progress is not None
    assert (progress.step, progress.bits_per_byte, progress.max_violation) == (12, 1.25, None)


def test_fresh_start_deletes_what_an_earlier_attempt_left(tmp_path: Path):
    recorder = telemetry(tmp_path)
    train_steps(recorder, [1.0])
    recorder.drain()
    recorder.close()
    (tmp_path / "spikes.jsonl").write_text("{}\n")
    delete_telemetry_after(tmp_path, -1)
    assert not list((tmp_path / "telemetry").iterdir())
    assert not (tmp_path / "spikes.jsonl").exists()


def test_tail_means_are_of_the_last_steps_only():
    tail = TailMeans(num_steps=40, layers=(1, 3))
    assert tail.loss is None
    assert tail.router is None
    for step in range(1, 41):
        high = step == 38
        tail.add(
            step,
            loss=float(step),
            router={
                "router/max_violation": np.array([1.0, 4.0 if high else 2.0]),
                "router/token_entropy": np.array([0.5, 1.0]),
                "router/load_entropy": np.array([1.0, 0.7]),
                "router/dead_fraction": np.array([0.1, 0.0]),
            },
        )
    assert tail.loss == pytest.approx((39 + 40) / 2)
    assert tail.router is not None
    assert tail.router.worst_max_violation == pytest.approx((2 + 4 + 2 + 2) / 4)
    assert tail.router.worst_max_violation_layer == 3
    assert tail.router.min_token_entropy == pytest.approx(0.5)
    assert tail.router.min_load_entropy == pytest.approx(0.7)
    assert tail.router.max_dead_fraction == pytest.approx(0.1)


def test_run_of_one_step_has_its_means_from_that_step():
    tail = TailMeans(num_steps=1, layers=())
    tail.add(1, loss=3.0, router={})
    assert tail.loss == 3.0
    assert tail.router is None
