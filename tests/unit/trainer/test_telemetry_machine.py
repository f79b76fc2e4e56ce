"""What the machine does: sampled once per step, and taken again by a resumed run."""

import json
from pathlib import Path

import torch

from trainer.telemetry.machine import MACHINE_FILE, MachineRecorder


def samples(folder: Path) -> list[dict[str, object]]:
    """The lines of machine.jsonl."""
    return [json.loads(line) for line in (folder / MACHINE_FILE).read_text().splitlines()]


def test_a_sample_has_the_figures_of_this_process(tmp_path: Path) -> None:
    held = torch.ones(20_000_000)  # 80 MB that the process cannot be without
    MachineRecorder(tmp_path, device=torch.device("cpu")).sample(7)
    (sample,) = samples(tmp_path)
    assert sample["step"] == 7
    values = sample["values"]
    assert isinstance(values, dict)
    assert held.nbytes / 1e6 < values["process_memory_usage_megabytes"] < values["system_memory_usage_megabytes"] * 2
    assert 0 < values["system_memory_usage_percentage"] <= 100
    assert 0 <= values["cpu_utilization_percentage"] <= 100
    assert not [name for name in values if name.startswith("gpu")]


def test_a_step_is_sampled_once_and_a_resumed_run_drops_what_it_takes_again(tmp_path: Path) -> None:
    first = MachineRecorder(tmp_path, device=torch.device("cpu"))
    for step in (5, 5, 10, 15):
        first.sample(step)
    assert [sample["step"] for sample in samples(tmp_path)] == [5, 10, 15]

    resumed = MachineRecorder(tmp_path, device=torch.device("cpu"))
    resumed.restore(step=10)
    resumed.sample(15)
    assert [sample["step"] for sample in samples(tmp_path)] == [5, 10, 15]


def test_other_workers_write_nothing(tmp_path: Path) -> None:
    MachineRecorder(None, device=torch.device("cpu")).sample(5)
    assert list(tmp_path.iterdir()) == []
