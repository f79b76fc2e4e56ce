"""One excursion is one event, complete, and the same whether the run was interrupted or not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.telemetry.spike_events import STEPS_AFTER, ObservedStep, Samples, SpikeRecorder


def samples_of_step(step: int) -> Samples:
    return Samples(first=8 * (step - 1), last=8 * step - 1, document_ids=[f"document-{step}"])


def observed(step: int, *, loss: float, grad_norm: float = 1.0) -> ObservedStep:
    router = [{"layer": 1, "max_violation": step / 10, "token_entropy": 1.0}]  # grows too evenly to have moved
    return ObservedStep(
        step=step,
        tokens=100 * step,
        time_ms=step,
        values={"train/loss": loss, "optimizer/grad_norm": grad_norm},
        lr=0.01,
        router=router,
    )


def losses(num_steps: int, planted: dict[int, float]) -> list[float]:
    """Loss per step, from step 1 on, with rises planted at steps."""
    noise = np.random.default_rng(0).normal(2.0, 0.05, num_steps)
    return [float(noise[step - 1]) + planted.get(step, 0.0) for step in range(1, num_steps + 1)]


def record(folder: Path, series: list[float]) -> list[dict[str, Any]]:
    recorder = SpikeRecorder(folder, samples_of_step=samples_of_step)
    for step, loss in enumerate(series, start=1):
        recorder.observe(observed(step, loss=loss))
    recorder.close()
    return events(folder)


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "spikes.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_planted_spike_is_one_complete_event(tmp_path: Path):
    series = losses(150, {100: 1.0})
    (event,) = record(tmp_path, series)
    assert event["step"] == 100
    assert event["metric"] == "train/loss"
    assert event["value"] == series[99]
    assert event["baseline"] == pytest.approx(np.mean(series[:99]))
    assert event["size"] == pytest.approx(event["value"] - event["baseline"])
    assert event["z"] > 6
    assert event["sample_indices"] == [792, 799]
    assert event["document_ids"] == ["document-100"]
    assert (event["lr"], event["grad_norm"], event["tokens"]) == (0.01, 1.0, 10_000)
    assert event["router_before"][0]["max_violation"] == 9.9
    assert event["router_at"][0]["max_violation"] == 10.0
    assert event["router_after"][0]["max_violation"] == 10.1
    assert event["recovered_step"] == 101


def test_excursion_of_several_steps_is_one_event(tmp_path: Path):
    (event,) = record(tmp_path, losses(150, {100: 1.0, 101: 3.0, 102: 2.0}))
    assert (event["step"], event["recovered_step"]) == (100, 103)


def test_event_without_recovery_is_written_after_its_window(tmp_path: Path):
    series = losses(200, dict.fromkeys(range(100, 201), 1.0))
    (event,) = record(tmp_path, series)
    assert event["recovered_step"] is None
    assert event["router_after"][0]["max_violation"] == (100 + STEPS_AFTER) / 10


def test_event_still_open_at_the_end_of_the_run_is_written_as_it_is(tmp_path: Path):
    (event,) = record(tmp_path, losses(101, {100: 1.0, 101: 1.0}))
    assert event["router_after"] is None
    assert event["recovered_step"] is None


def test_loss_and_gradient_are_watched_apart(tmp_path: Path):
    recorder = SpikeRecorder(tmp_path, samples_of_step=samples_of_step)
    for step, loss in enumerate(losses(150, {100: 1.0}), start=1):
        recorder.observe(observed(step, loss=loss, grad_norm=50.0 if step == 100 else 1.0))
    recorder.close()
    assert recorder.num_spikes == 2
    assert {event["metric"] for event in events(tmp_path)} == {"train/loss", "optimizer/grad_norm"}
    assert all(event["grad_norm"] == 50.0 for event in events(tmp_path))


@pytest.mark.parametrize("checkpoint", [70, 99, 100, 101, 103, 104, 130])
@pytest.mark.parametrize("lost_steps", [0, 1, 15])
def test_interrupted_run_leaves_the_same_file(tmp_path: Path, checkpoint: int, lost_steps: int):
    series = losses(150, {100: 1.0, 101: 2.0, 102: 2.0, 125: 2.0})
    (tmp_path / "whole").mkdir()
    (tmp_path / "resumed").mkdir()
    expected = record(tmp_path / "whole", series)
    assert len(expected) == 2

    first = SpikeRecorder(tmp_path / "resumed", samples_of_step=samples_of_step)
    state: dict[str, Any] = {}
    for step in range(1, min(checkpoint + lost_steps, 150) + 1):
        first.observe(observed(step, loss=series[step - 1]))
        if step == checkpoint:
            state = json.loads(json.dumps(first.state()))
    second = SpikeRecorder(tmp_path / "resumed", samples_of_step=samples_of_step)
    second.restore(state, step=checkpoint)
    for step in range(checkpoint + 1, 151):
        second.observe(observed(step, loss=series[step - 1]))
    second.close()
    assert events(tmp_path / "resumed") == expected
    assert second.num_spikes == 2


def test_stopped_run_writes_its_open_event_and_the_resumed_one_completes_it(tmp_path: Path):
    series = losses(150, {100: 1.0, 101: 1.0, 102: 1.0})
    first = SpikeRecorder(tmp_path, samples_of_step=samples_of_step)
    for step in range(1, 102):
        first.observe(observed(step, loss=series[step - 1]))
    state = json.loads(json.dumps(first.state()))
    first.close()
    assert [event["recovered_step"] for event in events(tmp_path)] == [None]
    second = SpikeRecorder(tmp_path, samples_of_step=samples_of_step)
    second.restore(state, step=101)
    for step in range(102, 151):
        second.observe(observed(step, loss=series[step - 1]))
    assert [event["recovered_step"] for event in events(tmp_path)] == [103]


def test_line_cut_short_by_a_kill_is_dropped(tmp_path: Path):
    series = losses(110, {100: 1.0})
    record(tmp_path, series)
    with (tmp_path / "spikes.jsonl").open("a") as file:
        file.write('{"step": 109, "met')
    recorder = SpikeRecorder(tmp_path, samples_of_step=samples_of_step)
    state = recorder.state()
    recorder.restore(state, step=105)
    assert [event["step"] for event in events(tmp_path)] == [100]


def test_worker_without_a_folder_counts_and_writes_nothing(tmp_path: Path):
    recorder = SpikeRecorder(None, samples_of_step=samples_of_step)
    for step, loss in enumerate(losses(150, {100: 1.0}), start=1):
        recorder.observe(observed(step, loss=loss))
    recorder.close()
    assert recorder.num_spikes == 1


def wandering(num_steps: int, *, moves_at: int) -> list[float]:
    """A layer's MaxVio per step, from step 1 on, that leaves its range at a step and stays away."""
    noise = np.random.default_rng(1).normal(0.5, 0.02, num_steps)
    return [float(noise[step - 1]) + (2.0 if step >= moves_at else 0.0) for step in range(1, num_steps + 1)]


@pytest.mark.parametrize("lead", [0, 1, 12, 20])
def test_event_says_how_many_steps_before_the_loss_the_router_moved(tmp_path: Path, lead: int):
    violations = wandering(150, moves_at=120 - lead)
    recorder = SpikeRecorder(tmp_path, samples_of_step=samples_of_step)
    for step, loss in enumerate(losses(150, {120: 1.0}), start=1):
        router = [
            {"layer": layer, "max_violation": violations[step - 1] if layer == 3 else 0.5, "token_entropy": 1.0}
            for layer in (1, 3)
        ]
        recorder.observe(observed(step, loss=loss)._replace(router=router))
    (event,) = events(tmp_path)
    (moved,) = event["moved"]
    assert (moved["metric"], moved["layer"]) == ("router/max_violation", 3)
    assert (moved["step"], moved["steps_before"]) == (120 - lead, lead)
    when = "at the same step as" if lead == 0 else f"{lead} step{'s' if lead > 1 else ''} before"
    assert event["order"] == [f"router/max_violation of layer 3 moved {when} train/loss"]


def test_router_that_moved_long_before_or_never_is_not_named(tmp_path: Path):
    assert record(tmp_path, losses(150, {120: 1.0}))[0]["moved"] == []


def test_excursion_has_the_router_at_its_peak(tmp_path: Path):
    (event,) = record(tmp_path, losses(150, {100: 1.0, 101: 3.0, 102: 2.0}))
    assert (event["peak_step"], event["router_peak"][0]["max_violation"]) == (101, 10.1)
    assert event["peak_value"] > event["value"]
    assert event["recovery_steps"] == 3


def test_event_names_the_newest_checkpoint(tmp_path: Path):
    recorder = SpikeRecorder(tmp_path, samples_of_step=samples_of_step)
    for step, loss in enumerate(losses(150, {100: 1.0}), start=1):
        recorder.observe(observed(step, loss=loss))
        if step in (50, 90, 140):
            recorder.checkpoint_made(step)
    assert events(tmp_path)[0]["checkpoint_step"] == 90
