"""How fast the forwarder is, and what MLflow costs training: `python -m benchmarks.forwarder --json`.

    points_per_s       points that a real MLflow server (one worker, SQLite, on this machine) takes in from us
    step_black_holed   median duration of a training step while a forwarder process waits for an MLflow that takes
                       connections and never answers, over the same without a forwarder; in turns, the least of several

Training never talks to MLflow: what it could feel is a second process at work, which runs at a lower priority.
"""

import argparse
import json
import os
import platform
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from orchestrator.execution import processes
from orchestrator.execution.conductor import Conductor, Places
from orchestrator.home import logs_folder
from orchestrator.spec import ExperimentSpec
from orchestrator.store.migrate import upgrade
from orchestrator.store.session import database_url, open_database
from orchestrator.tracking import server
from orchestrator.tracking.chunks import columns
from orchestrator.tracking.record import Point
from orchestrator.tracking.remote import Remote
from trainer import worker
from trainer.config.run import RunReport, RunRequest

NUM_KEYS, NUM_STEPS = 100, 200
NUM_ROUNDS = 2
_DURATION = "throughput/step_duration_s"
START_TIMEOUT_S = 180.0

TRIAL_STEPS, SEQ_LEN, BATCH = 60, 64, 16
SPEC = {
    "name": "benchmark",
    "base": {
        "model": {
            "vocab_size": 1024,
            "dim": 128,
            "num_layers": 2,
            "hidden_dim": 256,
            "attention": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32},
            "moe": {"num_experts": 8, "top_k": 2, "hidden_dim": 128},
        },
        "data": {"mixture": {"legal": 1}, "tokenizer": "bpe-1024", "seq_len": SEQ_LEN},
        "optimizer": {"lr": 1e-3},
        "loop": {
            "budget_tokens": TRIAL_STEPS * SEQ_LEN * BATCH,
            "global_batch_size": BATCH,
            "micro_batch_size": BATCH,
            "log_every_steps": 5,
            "checkpoint_every_tokens": TRIAL_STEPS * SEQ_LEN * BATCH // 10,
        },
    },
    "num_trials": 1,
}


def points() -> Iterator[Point]:
    """As many as a long run sends: every key at every step."""
    for step in range(NUM_STEPS):
        for key in range(NUM_KEYS):
            yield Point(f"router/metric_{key}/mean", 1.0 / (step + key + 1), 1_700_000_000_000 + 1000 * step, step)


def points_per_s() -> float:
    """What a fresh server takes in."""
    with tempfile.TemporaryDirectory(prefix="evenload-benchmark-") as folder:
        identity, url, child = server.start_server(Path(folder))
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not server.is_healthy(url):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"MLflow did not answer within {START_TIMEOUT_S:.0f} s")
                time.sleep(0.1)
            remote = Remote(url)
            experiment_id = remote.experiment("benchmark")
            run_id = remote.run(experiment_id, key="k", value="v", name="benchmark", start_ms=0, tags={})
            started_s = time.perf_counter()
            remote.log_points(run_id, points())
            return NUM_KEYS * NUM_STEPS / (time.perf_counter() - started_s)
        finally:
            server.stop_server(identity)
            child.wait()


@contextmanager
def black_hole() -> Iterator[str]:
    """The URL of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def step_s(root: Path, uri: str | None) -> float:
    """The median step of a trial in this process, with a forwarder to `uri` beside it, if it is given."""
    root.mkdir()
    upgrade(database_url(root))
    database = open_database(database_url(root))
    forwarder = None
    if uri is not None:
        forwarder = processes.start_module(
            "orchestrator.tracking.forwarder",
            [],
            log=logs_folder(root) / "forwarder.log",
            environment=processes.child_environment({"EVENLOAD_HOME": str(root), "EVENLOAD_MLFLOW_URI": uri}),
        )
        time.sleep(5.0)  # it starts up, which is not what is measured
    try:
        with database.transaction() as work:
            spec = ExperimentSpec.model_validate(SPEC)
            experiment_id = work.experiments.submit(spec, document=SPEC).experiment.id
            epoch = work.experiments.claim(experiment_id, owner="benchmark", ttl_s=600)
        assert epoch is not None, "nobody else claims it"
        places = Places(max_concurrent=1, num_threads=1, use_gpu=False)
        conductor = Conductor(database, root, experiment_id=experiment_id, epoch=epoch, places=places)
        conductor.recover()
        request = conductor.next_run()
        assert isinstance(request, RunRequest), "one trial is to run"

        def take(report: RunReport) -> None:
            conductor.report(request.run_id, report)

        worker.run(request, take)
        return float(np.median(columns([Path(request.folder)], "scalars", [_DURATION])[_DURATION]))
    finally:
        database.close()
        if forwarder is not None:
            os.kill(forwarder.pid, signal.SIGTERM)
            forwarder.wait()


def step_black_holed() -> float:
    """The ratio of the module's docstring."""
    least = {False: float("inf"), True: float("inf")}
    with tempfile.TemporaryDirectory(prefix="evenload-benchmark-") as folder, black_hole() as url:
        for round_ in range(NUM_ROUNDS):
            for failing in least:
                duration_s = step_s(Path(folder) / f"{round_}-{failing}", url if failing else None)
                least[failing] = min(least[failing], duration_s)
    return least[True] / least[False]


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forwarder", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    as_json = parser.parse_args().json
    figures = {"points_per_s": round(points_per_s()), "step_black_holed": round(step_black_holed(), 3)}
    if as_json:
        print(json.dumps({"machine": platform.processor() or platform.machine(), **figures}))
    else:
        for name, value in figures.items():
            print(f"{name:18} {value}")


if __name__ == "__main__":
    main()
