"""How many planted spikes are found, and how much else: `python -m benchmarks.spike_detection --json`.

Small models are trained, each with another seed, and nothing is wrong with them. Into copies of their series of the
loss and of the gradient norm, noise, fall and all, spikes of one step are planted at drawn steps. The online detector
of alarms (128 steps, 6 sigma, upward) and the score of tables (1000 steps, 7 sigma, two-sided) read each copy from its
beginning, as they would a run.

    recall      planted spikes that are found at their step, of all planted
    precision   planted ones of all that is found; the series' own outliers count as errors, whatever they are

Precision depends on how many are planted: here five in each series of 1,000 steps.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.tracking.chunks import columns
from trainer import worker
from trainer.config import TrainConfig
from trainer.config.run import RunRequest
from trainer.data.shards import default_cache_dir
from trainer.metrics.spikes import ONLINE_WINDOW, SpikeDetector, scored_spikes

NUM_STEPS, SEQ_LEN, BATCH = 1000, 32, 8
SEEDS = (0, 1)
NUM_DRAWS = 10
NUM_PLANTED = 5
"""In each copy; the detector's window holds one of them at most."""

SIZES: Mapping[str, Sequence[float]] = {
    "train/loss": (0.5, 1.0, 2.0, 4.0),
    "optimizer/grad_norm": (2.0, 4.0, 8.0, 16.0),
}
"""What is planted: nats that are added to the loss, factors of the gradient norm."""

_PLANTED: Mapping[str, Callable[[float, float], float]] = {
    "train/loss": lambda value, size: value + size,
    "optimizer/grad_norm": lambda value, size: value * size,
}


@dataclass(frozen=True)
class Measurement:
    """What was found of one size in one metric; `clean` is how much is found per series where nothing is planted.

    Attributes:
        metric, size: what was planted.
        method: `online` or `score`.
        recall, precision: shares; precision None where nothing was found.
    """

    metric: str
    size: float
    method: str
    recall: float
    precision: float | None
    clean: float


@dataclass(frozen=True)
class Report:
    """Everything one run measured; `num_planted` of each size and metric."""

    num_steps: int
    num_series: int
    num_planted: int
    measurements: Sequence[Measurement]

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def as_table(self) -> str:
        return table(asdict(self))


def online(series: Sequence[float]) -> set[int]:
    """Returns the indices that the detector of alarms flags."""
    detector = SpikeDetector()
    return {index for index, value in enumerate(series) if detector.update(value) is not None}


def scored(series: Sequence[float]) -> set[int]:
    """Returns the indices that the score of tables counts."""
    return set(scored_spikes(series))


def plant(
    series: NDArray[np.float64], size: float, *, metric: str, draw: np.random.Generator
) -> tuple[NDArray[np.float64], set[int]]:
    """Returns a copy with `NUM_PLANTED` spikes, further apart than the detector's window, and their indices."""
    stretch = (len(series) - ONLINE_WINDOW) // NUM_PLANTED
    firsts = ONLINE_WINDOW + stretch * np.arange(NUM_PLANTED)
    places = {int(first + draw.integers(0, stretch - ONLINE_WINDOW)) for first in firsts}
    planted = series.copy()
    for place in places:
        planted[place] = _PLANTED[metric](planted[place], size)
    return planted, places


def measurements(series_of: Mapping[str, Sequence[NDArray[np.float64]]], *, num_draws: int) -> list[Measurement]:
    """Returns what both methods find of every size, in copies of all series of a metric."""
    found = []
    for metric, series in series_of.items():
        for method, flagged in (("online", online), ("score", scored)):
            clean = sum(len(flagged(each.tolist())) for each in series) / len(series)
            for size in SIZES[metric]:
                draw = np.random.default_rng(0)
                num_planted = num_hits = num_flagged = 0
                for each in series:
                    for _ in range(num_draws):
                        copy, places = plant(each, size, metric=metric, draw=draw)
                        there = flagged(copy.tolist())
                        num_planted += len(places)
                        num_hits += len(places & there)
                        num_flagged += len(there)
                precision = round(num_hits / num_flagged, 3) if num_flagged else None
                recall = round(num_hits / num_planted, 3)
                found.append(Measurement(metric, size, method, recall, precision, round(clean, 2)))
    return found


def table(report: Mapping[str, Any]) -> str:
    """Returns a report, as it is kept, as a table in Markdown: a row per metric and size."""
    lines = [
        "| planted in | size | recall, online | precision | recall, score | precision |",
        "|---|---|---|---|---|---|",
    ]
    measured = {(each["metric"], each["size"], each["method"]): each for each in report["measurements"]}
    for metric, sizes in SIZES.items():
        for size in sizes:
            cells = []
            for method in ("online", "score"):
                each = measured[metric, size, method]
                precision = each["precision"]
                cells += [f"{each['recall']:.0%}", "" if precision is None else f"{precision:.0%}"]
            words = f"+{size:g} nats" if metric == "train/loss" else f"x {size:g}"
            lines.append(f"| `{metric}` | {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def config(seed: int) -> TrainConfig:
    """Returns the run whose series is planted into."""
    return TrainConfig.model_validate(
        {
            "model": {
                "vocab_size": 1024,
                "dim": 32,
                "num_layers": 2,
                "hidden_dim": 64,
                "attention": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16},
                "moe": {"num_experts": 8, "top_k": 2, "hidden_dim": 32},
            },
            "data": {"tokenizer": "bpe-1024", "seq_len": SEQ_LEN, "evaluation_tokens": 64},
            "optimizer": {"lr": 3e-3},
            "loop": {
                "budget_tokens": NUM_STEPS * SEQ_LEN * BATCH,
                "global_batch_size": BATCH,
                "micro_batch_size": BATCH,
                "evaluate_every_tokens": NUM_STEPS * SEQ_LEN * BATCH,
            },
            "seed": seed,
        }
    )


def trained(seed: int) -> dict[str, NDArray[np.float64]]:
    """Returns the series of one run by metric."""
    with tempfile.TemporaryDirectory(prefix="evenload-benchmark-") as folder:
        request = RunRequest(run_id="run", config=config(seed), folder=folder, cache_folder=str(default_cache_dir()))
        worker.run(request, lambda _: None)
        found = columns([Path(folder)], "scalars", list(SIZES))
    return {metric: np.asarray(found[metric], dtype=np.float64) for metric in SIZES}


def run(*, num_draws: int = NUM_DRAWS) -> Report:
    """Returns the measurements of `num_draws` copies of each series and size."""
    series = [trained(seed) for seed in SEEDS]
    by_metric = {metric: [each[metric] for each in series] for metric in SIZES}
    return Report(
        NUM_STEPS, len(SEEDS), num_draws * NUM_PLANTED * len(SEEDS), measurements(by_metric, num_draws=num_draws)
    )


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spike_detection", description="Planted spikes found.")
    parser.add_argument("--draws", type=int, default=NUM_DRAWS, help="Copies of each series for each size")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    report = run(num_draws=options.draws)
    print(report.as_json() if options.json else report.as_table())


if __name__ == "__main__":
    main()
