"""What benchmarks of single shapes return: times and their ratios, as JSON and as a table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol


class ShapeTuple(Protocol):
    """A NamedTuple of sizes."""

    def _asdict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class ShapeMeasurement:
    """Times of every piece of work at one shape, and the benchmark's ratios of them."""

    shape: ShapeTuple
    milliseconds: dict[str, float]
    ratios: dict[str, float]


@dataclass(frozen=True)
class Report:
    """Everything one run measured, and on what."""

    device: str
    threads: int
    dtype: str
    torch: str
    rounds: int
    measurements: Sequence[ShapeMeasurement]

    def as_json(self) -> str:
        measurements = [
            {**asdict(measurement), "shape": measurement.shape._asdict()} for measurement in self.measurements
        ]
        return json.dumps({**asdict(self), "measurements": measurements}, indent=2)

    def as_table(self) -> str:
        lines = [f"{self.device}, {self.threads} thread(s), {self.dtype}, torch {self.torch}"]
        for measurement in self.measurements:
            lines.append(" ".join(f"{name}={value}" for name, value in measurement.shape._asdict().items()))
            lines += [f"  {name:<22}{ratio:8.3f}" for name, ratio in measurement.ratios.items()]
        return "\n".join(lines)
