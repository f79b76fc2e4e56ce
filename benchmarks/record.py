"""Runs benchmarks and keeps their results: `python -m benchmarks.record [NAME ...]`.

Writes `benchmarks/results/NAME.json`: the machine with versions, date and commit, and the report. `benchmarks.goals`
makes the table of docs/benchmarks.md from these files. Takes about fifteen minutes on two idle cores.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Protocol

import torch

from benchmarks import (
    api,
    attention,
    forwarder,
    histories,
    kernels,
    orchestration,
    outage,
    search,
    spike_detection,
    step,
)
from benchmarks.machine import RESULTS, machine


class AnyReport(Protocol):
    """What every benchmark returns."""

    def as_json(self) -> str: ...

    def as_table(self) -> str: ...


BENCHMARKS: dict[str, Callable[[], AnyReport]] = {
    "kernels": lambda: kernels.run(device="cpu", dtype=torch.float32, rounds=8, shapes=kernels.CPU_SHAPES),
    "attention": lambda: attention.run(device="cpu", dtype=torch.float32, rounds=5, shapes=attention.CPU_SHAPES),
    "step": lambda: step.run(rounds=4),
    "forwarder": lambda: forwarder.run(rounds=5),
    "outage": lambda: outage.run(rounds=outage.ROUNDS),
    "search": lambda: search.run(rounds=15),
    "orchestration": orchestration.run,
    "histories": histories.run,
    "api": lambda: api.measure(100, api.NUM_TRIALS),
    "spike_detection": spike_detection.run,
}


def record(name: str) -> str:
    """Runs the benchmark, writes its result, and returns its table."""
    ran_on = asdict(machine())
    report = BENCHMARKS[name]()
    document = {"benchmark": name, "machine": ran_on, "report": json.loads(report.as_json())}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return report.as_table()


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, runs what it names or everything, and prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description="Keeps benchmarks' results.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}")
    torch.set_num_threads(1)
    for name in options.names or BENCHMARKS:
        print(record(name), flush=True)


if __name__ == "__main__":
    main()
