"""What the API's calls cost beyond a request that does nothing: `python -m benchmarks.api --json`.

A server process of its own on an empty home, one client, requests in turns with GET /livez, so that a slower or busier
machine changes both. Every ratio is a time over the median of GET /livez in the same run.

    submit      POST /v1/experiments with a fresh spec: parsed, admitted, committed to disk (SQLite, synchronous=FULL)
    validate    POST /v1/experiments:validate: admitted and estimated
    refuse      POST /v1/experiments with a grid of 10^9 points
    page        GET .../trials?limit=200 in the middle of a list of 10,000 trials
    list        the whole list of 10,000 trials, ten pages of 1,000
    experiments GET /v1/experiments?limit=50
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from orchestrator.spec import ExperimentSpec
from orchestrator.store.records import Proposal, TrialKind
from orchestrator.store.session import database_url, open_database

NUM_TRIALS = 10_000
MIDDLE_PAGE = 25
CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Cost:
    """Times of one kind of call, and their ratios to the median of a call that does nothing."""

    calls: int
    p50_ms: float
    p95_ms: float
    p50_ratio: float
    p95_ratio: float


@dataclass(frozen=True)
class Report:
    """Everything one run measured."""

    python: str
    machine: str
    num_trials: int
    rounds: int
    nothing_p50_ms: float
    costs: dict[str, Cost]

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def as_table(self) -> str:
        lines = [f"GET /livez: {self.nothing_p50_ms} ms (median)"]
        for name, cost in self.costs.items():
            p50 = f"p50 {cost.p50_ms:8.2f} ms = {cost.p50_ratio:7.1f} x"
            lines.append(f"{name:<12} {p50}    p95 {cost.p95_ms:8.2f} ms = {cost.p95_ratio:7.1f} x")
        return "\n".join(lines)


def document(name: str) -> dict[str, Any]:
    """A spec as people send it: one page of JSON, a search over four parameters."""
    return {
        "name": name,
        "base": {
            "model": {
                "vocab_size": 4096, "dim": 128, "num_layers": 4, "hidden_dim": 512,
                "attention": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32},
                "moe": {"num_experts": 16, "top_k": 2, "hidden_dim": 128, "balancing": []},
            },
            "data": {"seq_len": 128},
            "optimizer": {"lr": 0.003},
            "loop": {"budget_tokens": 1_000_000, "global_batch_size": 32, "micro_batch_size": 16},
        },
        "space": {
            "optimizer.lr": {"float": [1e-4, 1e-2], "log": True},
            "optimizer.router.lr_scale": {"float": [0.1, 10.0], "log": True},
            "model.moe.top_k": {"int": [1, 4]},
            "model.moe.balancing": {
                "options": {
                    "none": [],
                    "loss": [{"kind": "load_balancing_loss", "coefficient": {"float": [1e-3, 1e-1], "log": True}}],
                }
            },
        },
        "baselines": [{"name": "dense", "set": {"model.moe": None}}],
        "sampler": {"kind": "tpe"},
        "num_trials": 50,
    }  # fmt: skip


def grid_document() -> dict[str, Any]:
    """A grid of 10^9 points."""
    fine = {"float": [0.0, 1.0], "step": 1e-9}
    return document("grid") | {"sampler": {"kind": "grid"}, "space": {"optimizer.weight_decay": fine}}


@contextmanager
def server(home: Path) -> Iterator[httpx.Client]:
    """The API of `home` in a process of its own; yields a client once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "EVENLOAD_HOME": str(home), "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-m", "api", "--port", str(port), "--no-token"]
    with (home / "api.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=CHECKOUT, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            deadline = time.monotonic() + 60
            while True:
                try:
                    client.get("/livez").raise_for_status()
                    break
                except httpx.TransportError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError((home / "api.log").read_text()) from None
                    time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait(30)


def fill(home: Path, experiment_id: str, num_trials: int) -> None:
    """Adds trials to an experiment, as its driver would over days."""
    database = open_database(database_url(home))
    try:
        with database.transaction() as work:
            spec = ExperimentSpec.model_validate(work.experiments.get(experiment_id).spec)
            first = len(work.trials.history(experiment_id))
            for number in range(first, num_trials):
                params = {"optimizer.lr": 1e-4 + number * 1e-9, "model.moe.top_k": 1 + number % 4}
                work.trials.insert(
                    experiment_id,
                    number=number,
                    kind=TrialKind.SEARCH,
                    label=None,
                    batch=None,
                    epoch=0,
                    sequence=number,
                    proposal=Proposal(params=params, config=spec.base),
                )
    finally:
        database.close()


def whole_list(client: httpx.Client, experiment_id: str, *, limit: int, pages: int | None = None) -> str | None:
    """Reads up to `pages` pages of trials; returns the cursor after them."""
    cursor: str | None = None
    read = 0
    while pages is None or read < pages:
        params = {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
        answer = client.get(f"/v1/experiments/{experiment_id}/trials", params=params)
        answer.raise_for_status()
        cursor = answer.json()["next_cursor"]
        read += 1
        if cursor is None:
            break
    return cursor


def measure(rounds: int, num_trials: int) -> Report:
    """Runs everything in turns, `rounds` times."""
    with tempfile.TemporaryDirectory(prefix="evenload-benchmark-") as folder, server(Path(folder)) as client:

        def post(path: str, body: dict[str, Any], status: int) -> dict[str, Any]:
            answer = client.post(path, json=body)
            assert answer.status_code == status, answer.text
            return answer.json()

        large = post("/v1/experiments", document("large"), 201)["id"]
        fill(Path(folder), large, num_trials)
        middle = whole_list(client, large, limit=200, pages=min(MIDDLE_PAGE, num_trials // 200 - 1))
        page = {"limit": "200"} | ({"cursor": middle} if middle else {})
        numbers = iter(range(10**9))
        calls: dict[str, Callable[[], object]] = {
            "submit": lambda: post("/v1/experiments", document(f"submitted {next(numbers)}"), 201),
            "validate": lambda: post("/v1/experiments:validate", document("validated"), 200),
            "refuse": lambda: post("/v1/experiments", grid_document(), 422),
            "page": lambda: client.get(f"/v1/experiments/{large}/trials", params=page).raise_for_status(),
            "list": lambda: whole_list(client, large, limit=1000),
            "experiments": lambda: client.get("/v1/experiments", params={"limit": "50"}).raise_for_status(),
        }
        nothing: list[float] = []
        times: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(rounds):
            for name, call in calls.items():
                if name == "list" and number % 5:
                    continue  # ten requests each
                nothing.append(_timed(lambda: client.get("/livez").raise_for_status()))
                times[name].append(_timed(call))
    base = statistics.median(nothing)
    return Report(
        python=platform.python_version(),
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
        num_trials=num_trials,
        rounds=rounds,
        nothing_p50_ms=round(base * 1000, 3),
        costs={name: _cost(values, base) for name, values in times.items()},
    )


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _cost(values: list[float], base: float) -> Cost:
    p50 = statistics.median(values)
    p95 = statistics.quantiles(values, n=20, method="inclusive")[-1]
    return Cost(
        calls=len(values),
        p50_ms=round(p50 * 1000, 3),
        p95_ms=round(p95 * 1000, 3),
        p50_ratio=round(p50 / base, 2),
        p95_ratio=round(p95 / base, 2),
    )


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.api", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--trials", type=int, default=NUM_TRIALS)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    report = measure(arguments.rounds, arguments.trials)
    print(report.as_json() if arguments.json else report.as_table())


if __name__ == "__main__":
    main()
