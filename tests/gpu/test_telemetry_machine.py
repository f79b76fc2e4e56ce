"""What a GPU does while a run trains, as far as this process can ask."""

import pytest
import torch

from trainer.telemetry.machine import device_use

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_gpu_has_its_memory() -> None:
    held = torch.ones(10_000_000, device="cuda")
    values = device_use(torch.device("cuda"))
    assert values["gpu_0_process_memory_usage_megabytes"] >= held.nbytes / 1e6
    assert values["gpu_0_memory_usage_megabytes"] >= values["gpu_0_process_memory_usage_megabytes"]
    assert 0 < values["gpu_0_memory_usage_percentage"] <= 100
