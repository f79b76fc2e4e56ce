"""A home folder with real, tiny experiments in it: admitted, proposed, trained, pruned and recorded by the real parts.

Only Ray is left out: runs are executed one after the other in this process. What the API and the dashboard show of such
a home is what they show of any other.

    python -m tests.support.seeded_home --home DIR          fills DIR
    python -m tests.support.seeded_home --home DIR --serve  and serves it until Ctrl-C
"""

import argparse
import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from api.app import create_app
from api.auth import ensure_token
from api.settings import Settings
from orchestrator.admission import admit
from orchestrator.execution.conductor import Conductor, Next, Places
from orchestrator.home import token_path
from orchestrator.store.migrate import upgrade
from orchestrator.store.session import Database, database_url, open_database
from trainer.config.run import RunReport
from trainer.worker import run

DOMAINS = ("books", "code_python", "docs", "legal", "math_formal", "speeches")


@dataclass(frozen=True, kw_only=True)
class SeededHome:
    """A filled home.

    Attributes:
        root: the home folder.
        token: the API's bearer token.
        sweep: id of a completed experiment with completed, pruned and baseline trials.
        diverging: id of a completed experiment in which one trial diverged.
        running: id of an experiment whose first trial has ended and whose others have not begun.
    """

    root: Path
    token: str
    sweep: str
    diverging: str
    running: str


def train_document(*, num_steps: int) -> dict[str, Any]:
    """A TrainConfig of a few milliseconds a step: one dense layer, two of 8 experts, all six domains."""
    step_tokens = 8 * 32
    return {
        "model": {
            "vocab_size": 1024,
            "dim": 32,
            "num_layers": 3,
            "hidden_dim": 64,
            "attention": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16},
            "moe": {"num_experts": 8, "top_k": 2, "hidden_dim": 32, "num_dense_layers": 1},
        },
        "data": {
            "mixture": dict.fromkeys(DOMAINS, 1),
            "tokenizer": "bpe-1024",
            "seq_len": 32,
            "evaluation_tokens": 512,
        },
        "optimizer": {"lr": 0.01},
        "loop": {
            "budget_tokens": num_steps * step_tokens,
            "global_batch_size": 8,
            "micro_batch_size": 8,
            "log_every_steps": 5,
            "evaluate_every_tokens": max(1, num_steps // 8) * step_tokens,
        },
    }


def sweep_document(*, num_steps: int, num_trials: int) -> dict[str, Any]:
    """A random search over balancing and learning rates under ASHA, with a dense baseline."""
    return {
        "name": "balancing, tiny",
        "description": "Which balancing keeps the experts of a very small MoE evenly loaded, and at what cost?",
        "base": train_document(num_steps=num_steps),
        "space": {
            "model.moe.balancing": {
                "options": {
                    "none": [],
                    "switch_loss": [
                        {"kind": "load_balancing_loss", "coefficient": {"float": [1e-3, 1e-1], "log": True}}
                    ],
                    "loss_free_bias": [{"kind": "loss_free_bias", "update_rate": {"float": [1e-3, 1e-1], "log": True}}],
                }
            },
            "optimizer.lr": {"float": [1e-3, 5e-2], "log": True},
        },
        "baselines": [{"name": "dense", "set": {"model.moe": None}}],
        "sampler": {"kind": "random"},
        "scheduler": {"kind": "asha", "min_tokens": num_steps * 256 // 4, "reduction_factor": 2},
        "num_trials": num_trials,
        "seed": 1,
    }


def diverging_document(*, num_steps: int) -> dict[str, Any]:
    """Two scales of the dense learning rate, of which one makes weight decay multiply the weights by -49 every step."""
    base = train_document(num_steps=num_steps)
    base["optimizer"] = {"lr": 0.01, "weight_decay": 5.0}
    return {
        "name": "dense learning rate, far too high",
        "base": base,
        "space": {"optimizer.dense.lr_scale": {"choice": [1.0, 1000.0]}},
        "sampler": {"kind": "grid"},
    }


def unclipped_document(*, num_steps: int) -> dict[str, Any]:
    """Two high learning rates without clipping: the gradient norm has spikes, the router alarms, and forks a place."""
    base = train_document(num_steps=num_steps)
    base["optimizer"] = {"lr": 0.1, "beta2": 0.99}
    base["loop"]["max_grad_norm"] = None
    base["loop"]["checkpoint_every_tokens"] = 40 * 256
    base["warn_when"] = [
        {
            "kind": "metric",
            "metric": "router/max_violation",
            "comparison": "at_least",
            "threshold": 1.5,
            "for_steps": 10,
        }
    ]
    return {
        "name": "without clipping",
        "base": base,
        "space": {"optimizer.lr": {"choice": [0.1, 0.03]}},
        "sampler": {"kind": "grid"},
        "keep_checkpoints": {"last": 10},
    }


def seed_home(root: Path, *, num_steps: int = 160, num_trials: int = 5) -> SeededHome:
    """Fills the folder `root` with three experiments and returns their ids. About 20 s on one core."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    url = database_url(root)
    upgrade(url)
    database = open_database(url)
    try:
        return SeededHome(
            root=root,
            token=ensure_token(token_path(root)),
            diverging=execute(database, root, diverging_document(num_steps=max(24, num_steps // 4))),
            sweep=execute(database, root, sweep_document(num_steps=num_steps, num_trials=num_trials)),
            running=execute(database, root, unclipped_document(num_steps=240), most_runs=1),
        )
    finally:
        database.close()


def execute(database: Database, root: Path, document: dict[str, Any], *, most_runs: int | None = None) -> str:
    """Submits an experiment and executes its runs, all of them or the first `most_runs`; returns its id."""
    admitted = admit(document, capacity=None)
    with database.transaction() as work:
        submission = work.experiments.submit(admitted.spec, document=admitted.document, warnings=admitted.warnings)
        experiment_id = submission.experiment.id
        epoch = work.experiments.claim(experiment_id, owner="seeded_home", ttl_s=3600)
    assert epoch is not None
    conductor = Conductor(
        database,
        root,
        experiment_id=experiment_id,
        epoch=epoch,
        places=Places(max_concurrent=1, num_threads=1, use_gpu=False),
    )
    num_runs = 0
    while most_runs is None or num_runs < most_runs:
        request = conductor.next_run()
        if request is Next.FINISHED:
            break
        assert not isinstance(request, Next), "nothing runs beside this loop, so there is nothing to wait for"
        num_runs += 1
        run_id = request.run_id

        def report(message: RunReport, run_id: str = run_id, folder: Path = Path(request.folder)) -> None:
            # The driver copies progress once a second; here every report comes with the newest.
            conductor.watch(ttl_s=3600)
            if not conductor.report(run_id, message):
                (folder / "stop").touch()

        run(request, report)
        conductor.ended(run_id, None)
    if most_runs is None:
        conductor.settle()
    return experiment_id


@contextlib.contextmanager
def serve(root: Path, *, port: int | None = None) -> Iterator[str]:
    """Serves the API and the dashboard over a home; yields the address."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port or 0))
        chosen = listener.getsockname()[1]
        settings = Settings(
            home=root, database_url=database_url(root), token=ensure_token(token_path(root)), port=chosen
        )
        server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="warning", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{chosen}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.seeded_home", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help="serve the home until Ctrl-C")
    parser.add_argument("--port", type=int, default=8090)
    arguments = parser.parse_args()
    if not (arguments.home / "token").exists():
        seed_home(arguments.home, num_steps=arguments.steps, num_trials=arguments.trials)
    if arguments.serve:
        with serve(arguments.home, port=arguments.port), contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    _main()
