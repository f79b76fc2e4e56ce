"""What a sweep costs beside its trials: `python -m benchmarks.orchestration --json`. Ratios of times in one run.

Whole sweeps, ours and plain Ray Tune's in turns on one local head of two CPUs, two trials at a time, `reuse_actors` in
both; plain Tune has no database, no sampler but random, and one report per trial. Its files of results and its own
checkpoints of the sweep are off in both, which makes it faster than it comes:

    one_second   40 trials that sleep for a second: our time over Tune's
    nothing      1,000 trials that do nothing: our trials per second over Tune's

and the memory of this process, which is the driver here, and the time since the sweep began, after a hundredth and a
tenth of the 1,000 trials and after all of them.
"""

import argparse
import itertools
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from orchestrator.execution import tune
from orchestrator.execution.conductor import Conductor, Places
from orchestrator.spec import ExperimentSpec
from orchestrator.store.migrate import upgrade
from orchestrator.store.session import Database, open_database
from trainer.config.run import DomainEvaluation, RunReport, RunRequest, RunSummary

NUM_CPUS = 2
_SECONDS = "EVENLOAD_BENCHMARK_TRIAL_S"


@dataclass(frozen=True)
class Sweep:
    """Ours and plain Tune's, by least times and by medians over the rounds."""

    num_trials: int
    trial_s: float
    ours_s: list[float]
    tune_s: list[float]
    ratios: dict[str, float]
    median_ratios: dict[str, float]


@dataclass(frozen=True)
class Report:
    """Everything one run measured."""

    sweeps: dict[str, Sweep]
    memory_mib: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Since our sweep of trials that do nothing began, until so many of them had ended."""

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def as_table(self) -> str:
        lines = [
            f"{name}: {sweep.num_trials} trials of {sweep.trial_s} s: {sweep.ratios} (medians {sweep.median_ratios})"
            for name, sweep in self.sweeps.items()
        ]
        growth = [f"memory of the driver in MiB: {self.memory_mib}", f"seconds until so many ended: {self.seconds}"]
        return "\n".join([*lines, *growth])


def spec_of(num_trials: int, **fields: Any) -> ExperimentSpec:
    """A search over the learning rate of a small model."""
    document = {
        "name": "benchmark",
        "base": {
            "model": {
                "vocab_size": 1024, "dim": 32, "num_layers": 2, "hidden_dim": 64,
                "attention": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16},
                "moe": {"num_experts": 4, "top_k": 2, "hidden_dim": 32, "balancing": []},
            },
            "data": {"tokenizer": "bpe-1024", "seq_len": 64},
            "optimizer": {"lr": 0.003},
            "loop": {"budget_tokens": 65_536, "global_batch_size": 8, "micro_batch_size": 8},
        },
        "space": {"optimizer.lr": {"float": [1e-4, 1e-2], "log": True}},
        "num_trials": num_trials,
    }  # fmt: skip
    return ExperimentSpec.model_validate(document | fields)


@contextmanager
def conducted(folder: Path, spec: ExperimentSpec) -> Iterator[tuple[Conductor, Database]]:
    """A conductor of a fresh experiment in a home of its own."""
    folder.mkdir(parents=True)
    url = f"sqlite:///{folder / 'evenload.db'}"
    upgrade(url)
    database = open_database(url)
    try:
        with database.transaction() as work:
            id = work.experiments.submit(spec, document=spec.model_dump(mode="json")).experiment.id
            epoch = work.experiments.claim(id, owner="benchmark", ttl_s=100)
        assert epoch is not None
        places = Places(max_concurrent=NUM_CPUS, num_threads=1, use_gpu=False)
        yield Conductor(database, folder, experiment_id=id, epoch=epoch, places=places), database
    finally:
        database.close()


def trivial(config: dict[str, Any]) -> None:
    """A run of ours that only sleeps: it says that it has started, and what it found."""
    import ray.tune

    request = RunRequest.model_validate_json(config["request"])
    ray.tune.report({"report": RunReport(kind="started", step=0, tokens=0).model_dump_json()})
    time.sleep(float(os.environ[_SECONDS]))
    ray.tune.report({"report": finished(request).model_dump_json()})


def finished(request: RunRequest) -> RunReport:
    """The last word of a run: its learning rate as the objective."""
    config = request.config
    value = config.optimizer.lr
    figures = {name: None for name, field in RunSummary.model_fields.items() if field.is_required()} | {
        "final_loss": value, "initial_bits_per_byte": {"all": 8.0}, "bits_per_byte": {"all": value}, "num_spikes": 0,
        "tokens_per_s": 1.0, "training_duration_s": 1.0, "total_parameters": 1, "active_parameters": 1,
        "flops_per_token": 1.0,
    }  # fmt: skip
    return RunReport(
        kind="finished",
        step=config.num_steps,
        tokens=config.num_steps * config.step_tokens,
        evaluation={"all": DomainEvaluation(bits_per_byte=value, loss=value)},
        summary=RunSummary.model_validate(figures),
    )


def plain(config: dict[str, Any]) -> None:
    """The same for plain Tune."""
    import ray.tune

    time.sleep(float(os.environ[_SECONDS]))
    ray.tune.report({"loss": config["lr"]})


def _ours(folder: Path, num_trials: int, watch: Callable[[int], None]) -> float:
    spec = spec_of(num_trials)
    with conducted(folder, spec) as (conductor, _):
        ended = itertools.count(1)
        note = conductor.ended

        def noted(run_id: str, problem: str | None) -> None:
            note(run_id, problem)
            watch(next(ended))

        conductor.ended = noted
        original, tune.run_here = tune.run_here, trivial
        try:
            started = time.perf_counter()
            tune.run_all(conductor, resources=spec.resources, max_concurrent=NUM_CPUS)
            conductor.settle()
            return time.perf_counter() - started
        finally:
            tune.run_here = original


def _plain(folder: Path, num_trials: int) -> float:
    import ray.tune

    started = time.perf_counter()
    ray.tune.Tuner(
        ray.tune.with_resources(plain, {"cpu": 1}),
        param_space={"lr": ray.tune.loguniform(1e-4, 1e-2)},
        tune_config=ray.tune.TuneConfig(num_samples=num_trials, max_concurrent_trials=NUM_CPUS, reuse_actors=True),
        run_config=ray.tune.RunConfig(storage_path=str(folder), verbose=0),
    ).fit()
    return time.perf_counter() - started


def sweep(
    folder: Path,
    num_trials: int,
    trial_s: float,
    *,
    rounds: int,
    memory: dict[str, float] | None = None,
    seconds: dict[str, float] | None = None,
) -> Sweep:
    """Both sweeps in turns; each has to start its two processes. Notes the last of our sweeps' memory and times."""
    process = psutil.Process()
    began = 0.0

    def watch(ended: int) -> None:
        if memory is not None and seconds is not None and ended in (num_trials // 100, num_trials // 10, num_trials):
            memory[str(ended)] = round(process.memory_info().rss / 2**20, 1)
            seconds[str(ended)] = round(time.perf_counter() - began, 1)

    os.environ[_SECONDS] = str(trial_s)
    import ray

    ours: list[float] = []
    theirs: list[float] = []
    for number in range(rounds):
        # Workers take the environment of the driver that connects.
        runtime = {"env_vars": {_SECONDS: str(trial_s)}}
        ray.init(num_cpus=NUM_CPUS, include_dashboard=False, logging_level=logging.ERROR, runtime_env=runtime)
        try:
            began = time.perf_counter()
            ours.append(_ours(folder / f"ours-{number}", num_trials, watch))
            theirs.append(_plain(folder / f"tune-{number}", num_trials))
        finally:
            ray.shutdown()
    best, median = (min(ours), min(theirs)), (statistics.median(ours), statistics.median(theirs))
    return Sweep(num_trials, trial_s, ours, theirs, _ratios(*best), _ratios(*median))


def _ratios(ours_s: float, tune_s: float) -> dict[str, float]:
    return {"time_to_tune": round(ours_s / tune_s, 3), "throughput_to_tune": round(tune_s / ours_s, 3)}


def run(*, rounds: int = 3, num_trials: int = 1000, num_seconds: int = 40) -> Report:
    """Measures both sweeps in turns; `num_trials` do nothing, `num_seconds` sleep for a second."""
    memory: dict[str, float] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="evenload-benchmark-") as folder:
        root = Path(folder)
        return Report(
            sweeps={
                "one_second": sweep(root / "second", num_seconds, 1.0, rounds=rounds),
                "nothing": sweep(root / "nothing", num_trials, 0.0, rounds=1, memory=memory, seconds=seconds),
            },
            memory_mib=memory,
            seconds=seconds,
        )


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orchestration", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=1000, help="trials that do nothing")
    parser.add_argument("--seconds", type=int, default=40, help="trials that sleep for a second")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    report = run(rounds=options.rounds, num_trials=options.trials, num_seconds=options.seconds)
    print(report.as_json() if options.json else report.as_table())


if __name__ == "__main__":
    main()
