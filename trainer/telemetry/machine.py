"""What the machine does while a run trains: machine.jsonl, one JSON line per sample, under the names that MLflow uses.

Sampled on the host when chunks are written, never in a step. A figure that the machine does not give is left out.
"""

import importlib.util
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from trainer.telemetry.event_lines import EventLines

MACHINE_FILE = "machine.jsonl"

_MEGA = 1e6


class MachineRecorder:
    """Samples the machine and appends to `folder/machine.jsonl`.

    Args:
        folder: the run's folder; None samples nothing (workers other than rank 0).
        device: what the run trains on.
    """

    def __init__(self, folder: Path | None, *, device: torch.device) -> None:
        self._lines = EventLines(None if folder is None else folder / MACHINE_FILE)
        self._writes = folder is not None
        self._device = device
        self._sampled_step: int | None = None
        self._process = psutil.Process()
        # Both give the share since the call before.
        psutil.cpu_percent()
        self._process.cpu_percent()

    def sample(self, step: int) -> None:
        """Append how the machine is after `step`; once per step."""
        if self._writes and step != self._sampled_step:
            self._sampled_step = step
            values = {**self._host(), **device_use(self._device)}
            rounded = {name: round(value, 3) for name, value in values.items()}
            self._lines.append({"step": step, "time_ms": time.time_ns() // 1_000_000, "values": rounded})

    def restore(self, *, step: int) -> None:
        """Drop the samples after `step`, which a resumed run takes again."""
        self._lines.keep(lambda event: event["step"] <= step)

    def _host(self) -> dict[str, float]:
        memory = psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGA,
            "system_memory_usage_percentage": memory.percent,
            "process_cpu_utilization_percentage": self._process.cpu_percent(),
            "process_memory_usage_megabytes": self._process.memory_info().rss / _MEGA,
        }


def device_use(device: torch.device) -> dict[str, Any]:
    """Return memory of a GPU in use by anyone and by this process, and where its driver's library is, load and power.

    {} for a CPU. Nothing here waits for the device.
    """
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    prefix = f"gpu_{torch.device(device).index or 0}"
    values: dict[str, Any] = {
        f"{prefix}_memory_usage_megabytes": (total - free) / _MEGA,
        f"{prefix}_memory_usage_percentage": 100 * (total - free) / total,
        f"{prefix}_process_memory_usage_megabytes": torch.cuda.memory_reserved(device) / _MEGA,
    }
    if importlib.util.find_spec("pynvml") is not None:
        values |= {
            f"{prefix}_utilization_percentage": float(torch.cuda.utilization(device)),
            f"{prefix}_power_usage_watts": torch.cuda.power_draw(device) / 1000,
        }
    return values
