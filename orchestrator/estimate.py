"""What an experiment will take, before it starts: trials, tokens, FLOPs, memory, time and disk, each with its basis.

Closed forms over the base, the baselines and some points of the search space. Nothing here is exact for a search, so
every figure has a range, and says in words what it rests on.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.capacity import Capacity
from orchestrator.errors import InfeasiblePoint
from orchestrator.schedulers import ASHAScheduler, HyperbandScheduler, MedianScheduler, NoScheduler, PBTScheduler
from orchestrator.search.grid import num_search_trials
from orchestrator.search.rungs import rung_tokens
from orchestrator.search.space import baseline_configs, resolve
from orchestrator.search.trial_points import sample_points
from orchestrator.spec import ExperimentSpec
from trainer.config import TrainConfig
from trainer.config.precision import QuantizedExpertsSection
from trainer.metrics.catalog import QUANTIZATION_SCALARS, ROUTER_SCALARS, SCALARS
from trainer.model.size import MemoryEstimate, ModelSize, flops_per_token, memory_estimate, model_size

CPU_FLOPS = 10e9
"""FLOP/s of one CPU core in training, a guess where nothing was measured: a tenth of the float32 peak of a 3 GHz core
with two AVX2 FMA units (96e9)."""
GPU_FLOPS = 20e12
"""FLOP/s of one GPU likewise: the float32 peak of an A100 (19.5e12), a sixteenth of its bf16 peak."""
TRIAL_START_S = 5.0
"""Seconds from a free place in the cluster to the first step: a worker process that imports torch."""
_TELEMETRY_RATIO = 0.4
"""Compressed over raw size of telemetry: slowly drifting expert loads were measured at 0.3, scalars compress less."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The pace of a trial that has run on this installation with the same resources."""

    flops_per_token: float
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """A figure and its range. `value` is None if there is no basis for one."""

    value: float | None
    low: float | None
    high: float | None
    unit: str
    basis: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What an experiment will take.

    Attributes:
        num_trials: trials of the search.
        num_baselines: trials beside it.
        parameters: of the base configuration.
        total_parameters: over the space.
        flops_per_token: of the base configuration, forward and backward.
        tokens, training_flops: over all trials. `value` and `high` are as if none was stopped early, `low` as if every
            rung stopped all that it may.
        memory: of one worker of the base configuration.
        peak_memory: of one worker, over the space.
        max_parallel_trials: how many trials run at a time.
        duration, disk: of the whole experiment.
    """

    num_trials: int
    num_baselines: int
    parameters: ModelSize
    total_parameters: Estimated
    flops_per_token: float
    tokens: Estimated
    training_flops: Estimated
    memory: MemoryEstimate
    peak_memory: Estimated
    max_parallel_trials: Estimated
    duration: Estimated
    disk: Estimated


def estimate(spec: ExperimentSpec, *, capacity: Capacity | None, measured: Sequence[Measured] = ()) -> Estimate:
    """The estimate for an admitted spec.

    Args:
        capacity: what the cluster holds, or None if it is not known yet.
        measured: trials that ran before on the same resources, to take the speed from.
    """
    configs, coverage = _configs(spec)
    baselines = [config for _, config in baseline_configs(spec) for _ in range(spec.replicas)]
    num_trials = num_search_trials(spec) * spec.replicas
    sizes = [model_size(config.model).total for config in configs]
    memories = [memory_estimate(config).total_gib for config in (*configs, *baselines)]
    share = _least_share(spec)
    pruning = "" if share == 1 else "; the low end if every rung stops all it may"

    def over_all(values: Sequence[float], fixed: Sequence[float], unit: str, basis: str) -> Estimated:
        extra = sum(fixed)
        return Estimated(
            value=num_trials * statistics.fmean(values) + extra,
            low=num_trials * min(values) * share + extra,
            high=num_trials * max(values) + extra,
            unit=unit,
            basis=f"{basis}; {coverage}{pruning}",
        )

    parallel = _parallel_trials(spec, capacity)
    return Estimate(
        num_trials=num_trials,
        num_baselines=len(baselines),
        parameters=model_size(spec.base.model),
        total_parameters=_spread(sizes, "1", f"closed form; {coverage}"),
        flops_per_token=_flops_per_token(spec.base),
        tokens=over_all([_tokens(c) for c in configs], [_tokens(c) for c in baselines], "tokens", "budget_tokens"),
        training_flops=over_all(
            [_flops(config) for config in configs],
            [_flops(config) for config in baselines],
            "FLOP",
            "forward and backward pass of every training token, in closed form",
        ),
        memory=memory_estimate(spec.base),
        peak_memory=_spread(memories, "GiB", f"closed form, one worker; {coverage}"),
        max_parallel_trials=parallel,
        duration=_duration(spec, configs, baselines, num_trials, parallel, share, measured),
        disk=over_all(
            [_disk_gib(spec, config) for config in configs],
            [_disk_gib(spec, config) for config in baselines],
            "GiB",
            "every checkpoint kept (12 bytes a parameter), telemetry of every step",
        ),
    )


def _configs(spec: ExperimentSpec) -> tuple[list[TrainConfig], str]:
    """Configurations from all over the space, and in words which."""
    if not spec.space:
        return [spec.base], "the base"
    points = sample_points(spec)
    configs: list[TrainConfig] = []
    for point in points:
        try:
            configs.append(resolve(spec, point))
        except InfeasiblePoint:
            continue
    if not configs:
        return [spec.base], "the base, since none of the points tried is feasible"
    return configs, f"range over {len(configs)} points of the space"


def _spread(values: Sequence[float], unit: str, basis: str) -> Estimated:
    return Estimated(value=statistics.median(values), low=min(values), high=max(values), unit=unit, basis=basis)


def _tokens(config: TrainConfig) -> int:
    return config.num_steps * config.step_tokens


def _flops_per_token(config: TrainConfig) -> float:
    return flops_per_token(config.model, seq_len=config.data.seq_len)


def _flops(config: TrainConfig) -> float:
    return _tokens(config) * _flops_per_token(config)


def _least_share(spec: ExperimentSpec) -> float:
    """The share of the search's tokens that is trained if every rung stops all that its rule may.

    ASHA lets at least 1/reduction_factor on. Hyperband is taken as its hardest bracket, the median as stopping half,
    and patience as stopping every trial at the first rung where it can.
    """
    scheduler = spec.scheduler
    if isinstance(scheduler, NoScheduler | PBTScheduler):
        return 1.0  # of a population, what ends is taken on from there by a copy
    borders = (*rung_tokens(spec), spec.base.loop.budget_tokens)
    if isinstance(scheduler, ASHAScheduler | HyperbandScheduler):
        factor = scheduler.reduction_factor
    elif isinstance(scheduler, MedianScheduler):
        factor = 2
    else:
        return borders[min(scheduler.patience, len(borders) - 1)] / spec.base.loop.budget_tokens
    trained = sum(
        (end - start) / factor**passed for passed, (start, end) in enumerate(zip((0, *borders), borders, strict=False))
    )
    return trained / spec.base.loop.budget_tokens


def _parallel_trials(spec: ExperimentSpec, capacity: Capacity | None) -> Estimated:
    asked = spec.max_parallel_trials
    if capacity is None:
        basis = "the cluster is not known yet" + ("" if asked is None else "; max_parallel_trials")
        value = None if asked is None else float(asked)
        return Estimated(value=value, low=value, high=value, unit="trials", basis=basis)
    held = capacity.num_parallel_trials(spec.resources)
    value = float(held if asked is None else min(held, asked))
    basis = f"the cluster's {capacity.cpus:g} CPUs and {capacity.gpus:g} GPUs hold {held}"
    if asked is not None and asked < held:
        basis += f", max_parallel_trials={asked}"
    return Estimated(value=value, low=value, high=value, unit="trials", basis=basis)


def _duration(
    spec: ExperimentSpec,
    configs: Sequence[TrainConfig],
    baselines: Sequence[TrainConfig],
    num_trials: int,
    parallel: Estimated,
    share: float,
    measured: Sequence[Measured],
) -> Estimated:
    resources = spec.resources
    if measured:
        speeds = [trial.flops_per_token * trial.tokens_per_s for trial in measured]
        speed = statistics.median(speeds)
        basis = f"{speed:.3g} FLOP/s, the median of {len(speeds)} trials that ran here"
        slow, fast = min(speeds), max(speeds)
    else:
        per_worker = resources.gpus_per_worker * GPU_FLOPS or resources.cpus_per_worker * CPU_FLOPS
        speed = per_worker * resources.num_workers
        slow, fast = speed / 4, speed * 4
        device = f"{GPU_FLOPS:.0e} FLOP/s a GPU" if resources.gpus_per_worker else f"{CPU_FLOPS:.0e} FLOP/s a CPU"
        basis = f"a guess of {device}, since nothing has run here yet; right within a factor of 4 or so"
    places = max(1.0, parallel.value or 1.0)
    every = [(config, num_trials / len(configs)) for config in configs] + [(config, 1.0) for config in baselines]
    flops = sum(count * (_flops(config) + _evaluation_flops(spec, config)) for config, count in every)
    starting_s = (num_trials + len(baselines)) * TRIAL_START_S
    return Estimated(
        value=(flops / speed + starting_s) / places,
        low=(flops * share / fast + starting_s) / places,
        high=(flops / slow + starting_s) / places,
        unit="s",
        basis=f"{basis}; {places:g} at a time, {TRIAL_START_S:g} s to start each, with evaluations, none stopped early",
    )


def _evaluation_flops(spec: ExperimentSpec, config: TrainConfig) -> float:
    every = config.loop.evaluate_every_tokens
    num_evaluations = 2 + len(rung_tokens(spec, config)) + (0 if every is None else _tokens(config) // every)
    tokens = config.data.evaluation_tokens * len(config.data.mixture)
    # A forward pass is a third of a training step's.
    return num_evaluations * tokens * _flops_per_token(config) / 3


def _disk_gib(spec: ExperimentSpec, config: TrainConfig) -> float:
    every = config.loop.checkpoint_every_tokens
    num_checkpoints = 1 + len(rung_tokens(spec, config)) + (0 if every is None else _tokens(config) // every)
    checkpoint_bytes = 12 * model_size(config.model).total
    per_step = 8 * (3 + len(SCALARS))
    if config.model.moe is not None:
        num_layers = config.model.layer_kinds().count("moe")
        num_columns = len(ROUTER_SCALARS)
        if isinstance(config.precision, QuantizedExpertsSection):
            num_columns += len(QUANTIZATION_SCALARS)
        per_step += num_layers * (28 + 4 * num_columns + 4 * config.model.moe.num_experts)
    telemetry_bytes = config.num_steps * per_step * _TELEMETRY_RATIO
    return (num_checkpoints * checkpoint_bytes + telemetry_bytes) / 2**30
