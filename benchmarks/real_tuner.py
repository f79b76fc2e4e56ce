"""A real `tune.Tuner` beside Tune's classes on our clock: with one trial at a time both make the same trials."""

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.landscapes import BUDGET_STEPS, CURVES, measured
from benchmarks.simulated_sweep import Tunes, point_of, simulate

LANDSCAPE = "overfitting"
NUM_TRIALS = 40
SEED = 0


def differences() -> dict[str, Any]:
    """How many trials a real Tuner ran, and how many of them differ from ours in their values, steps or last loss."""
    real = _tuned()
    curve = CURVES[LANDSCAPE]
    num_steps = sum(steps for _, steps, _ in real)
    simulated = simulate(Tunes(SEED), curve, seed=SEED, num_workers=1, num_steps=num_steps)
    ours = [(trial.point, trial.num_steps, trial.value) for trial in simulated.values()]
    num_different = sum(one != other for one, other in zip(real, ours, strict=False)) + abs(len(real) - len(ours))
    return {
        "landscape": LANDSCAPE,
        "num_trials": len(real),
        "num_steps": num_steps,
        "num_stopped_early": sum(steps < BUDGET_STEPS for _, steps, _ in real),
        "num_different": num_different,
    }


def _tuned() -> list[tuple[Any, int, float]]:
    """Point, steps and last loss of each trial of a Tuner with the same searcher and scheduler."""
    import ray
    from ray import tune

    side = Tunes(SEED)

    def train(params: dict[str, Any]) -> None:
        point = point_of(params)
        for step in range(1, BUDGET_STEPS + 1):
            tune.report({"loss": measured(CURVES[LANDSCAPE], point, step, seed=SEED)})

    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="evenload-tuner-") as folder:
            tuner = tune.Tuner(
                train,
                tune_config=tune.TuneConfig(
                    search_alg=side.searcher,
                    scheduler=side.scheduler,
                    num_samples=NUM_TRIALS,
                    max_concurrent_trials=1,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(storage_path=folder, name=Path(folder).name, verbose=0),
            )
            grid = tuner.fit()
            results = [grid[index] for index in range(len(grid))]
    finally:
        ray.shutdown()
    found = []
    for result in results:
        assert result.config is not None
        assert result.metrics is not None
        found.append((point_of(result.config), result.metrics["training_iteration"], result.metrics["loss"]))
    return found
