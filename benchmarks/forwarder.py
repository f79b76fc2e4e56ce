"""How fast the forwarder brings points to MLflow: `python -m benchmarks.forwarder --json`.

A trial is trained, and its telemetry brought to a real MLflow server (one worker, SQLite, on this machine) as the
forwarder does it: read from the chunks, made into points, every step of every metric, sent in batches, acknowledged.
Points per second on the clock are of the machine and of whatever else it does. Per second of processor time, ours and
the server's together, hardly are: the two take turns, so on an idle machine the clock shows the same and the waiting
for the disk.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.execution import processes
from orchestrator.execution.processes import ProcessIdentity
from orchestrator.spec import Tracking
from orchestrator.tracking import record, server
from orchestrator.tracking.remote import Remote
from orchestrator.tracking.series import RunFolder, Source
from trainer import worker
from trainer.config import TrainConfig
from trainer.config.run import RunRequest
from trainer.data.shards import default_cache_dir

ROUNDS = 5
START_TIMEOUT_S = 180.0
EVERY_STEP = Tracking(mlflow_points="all")

NUM_STEPS, SEQ_LEN, BATCH = 240, 16, 4
CONFIG = TrainConfig.model_validate(
    {
        "model": {
            "vocab_size": 1024,
            "dim": 32,
            "num_layers": 4,
            "hidden_dim": 32,
            "attention": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16},
            "moe": {"num_experts": 8, "top_k": 2, "hidden_dim": 16},
        },
        "data": {"mixture": {"legal": 1, "speeches": 1}, "tokenizer": "bpe-1024", "seq_len": SEQ_LEN},
        "optimizer": {"lr": 1e-3},
        "loop": {
            "budget_tokens": NUM_STEPS * SEQ_LEN * BATCH,
            "global_batch_size": BATCH,
            "micro_batch_size": BATCH,
            "evaluate_every_tokens": NUM_STEPS * SEQ_LEN * BATCH // 4,
        },
    }
)
"""Small: what is measured is the way from the telemetry on, and only how many layers there are matters to it."""


@dataclass(frozen=True)
class Measurement:
    """One trial brought to a run of its own.

    Attributes:
        points: how many.
        wall_s: from the first byte read to the last batch acknowledged.
        our_cpu_s, server_cpu_s: processor time of this process and of the server meanwhile.
    """

    points: int
    wall_s: float
    our_cpu_s: float
    server_cpu_s: float


@dataclass(frozen=True)
class Report:
    """Everything one run measured, and the figures that goals are held against: of the best and the median round."""

    rounds: int
    measurements: list[Measurement]

    @property
    def points_per_s(self) -> list[float]:
        """Of every round, on the clock."""
        return [each.points / each.wall_s for each in self.measurements]

    @property
    def points_per_cpu_s(self) -> list[float]:
        """Of every round, per second of processor time."""
        return [each.points / (each.our_cpu_s + each.server_cpu_s) for each in self.measurements]

    def as_json(self) -> str:
        rates = {"points_per_s": self.points_per_s, "points_per_cpu_s": self.points_per_cpu_s}
        kinds = {
            "ratios": {name: round(max(of)) for name, of in rates.items()},
            "median_ratios": {name: round(statistics.median(of)) for name, of in rates.items()},
        }
        return json.dumps({**asdict(self), **kinds}, indent=2)

    def as_table(self) -> str:
        lines = ["points per s   wall ms   our CPU ms   server's CPU ms   (per 1000 points)"]
        for each, rate in zip(self.measurements, self.points_per_s, strict=True):
            per_thousand = [1e6 * taken / each.points for taken in (each.wall_s, each.our_cpu_s, each.server_cpu_s)]
            lines.append(f"{rate:12.0f}{per_thousand[0]:10.1f}{per_thousand[1]:13.1f}{per_thousand[2]:18.1f}")
        return "\n".join(lines)


@contextmanager
def mlflow_server(root: Path) -> Iterator[tuple[str, ProcessIdentity]]:
    """A server of its own that answers: its URL and its process."""
    identity, url, child = server.start_server(root)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not server.is_healthy(url):
            if time.monotonic() > deadline:
                raise TimeoutError(f"MLflow did not answer within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.1)
        yield url, identity
    finally:
        server.stop_server(identity)
        child.wait()


def train(folder: Path) -> None:
    """Leaves the telemetry of a run of `CONFIG` in `folder`."""
    request = RunRequest(run_id="run", config=CONFIG, folder=str(folder), cache_folder=str(default_cache_dir()))
    worker.run(request, lambda _: None)


def source_at(folder: Path) -> Source:
    """The trial whose only run is in `folder`."""
    return Source(id="trial", runs=(RunFolder("run", folder),))


def bring(source: Source, remote: Remote, experiment_id: str, *, name: str, leader: ProcessIdentity) -> Measurement:
    """Brings a trial to the MLflow run `name`."""
    run_id = remote.run(experiment_id, key="benchmark", value=name, name=name, start_ms=0, tags={})
    number = 0

    def counted() -> Iterator[record.Point]:
        nonlocal number
        for point in record.points(source, CONFIG, EVERY_STEP, after=-1, until=None):
            number += 1
            yield point

    before = (time.perf_counter(), time.process_time(), _cpu_s(leader))
    remote.log_points(run_id, counted())
    after = (time.perf_counter(), time.process_time(), _cpu_s(leader))
    wall_s, our_cpu_s, server_cpu_s = (end - start for start, end in zip(before, after, strict=True))
    return Measurement(number, wall_s, our_cpu_s, server_cpu_s)


def run(*, rounds: int = ROUNDS) -> Report:
    """Returns the measurements; each round brings the same trial to another MLflow run of the same server."""
    with tempfile.TemporaryDirectory(prefix="evenload-benchmark-") as folder:
        train(Path(folder) / "run")
        with mlflow_server(Path(folder) / "home") as (url, leader):
            remote = Remote(url)
            experiment_id = remote.experiment("benchmark")
            # The first request to a fresh server is not what is measured.
            remote.run(experiment_id, key="benchmark", value="warm", name="warm", start_ms=0, tags={})
            brought = []
            for number in range(rounds):
                # A copy has not been read before, as what a forwarder brings has not.
                copy = shutil.copytree(Path(folder) / "run", Path(folder) / f"run-{number}")
                measured = bring(source_at(copy), remote, experiment_id, name=f"round {number}", leader=leader)
                brought.append(measured)
    return Report(rounds, brought)


def _cpu_s(leader: ProcessIdentity) -> float:
    """Processor time of all processes of a session so far."""
    taken = 0.0
    for process in processes.session_members(leader):
        times = process.cpu_times()
        taken += times.user + times.system
    return taken


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forwarder", description="Points per second to MLflow.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    report = run(rounds=options.rounds)
    print(report.as_json() if options.json else report.as_table())


if __name__ == "__main__":
    main()
