"""How a search would unfold, before it starts: its phases, what its rungs let through, some of its configurations.

Nothing is asked of a sampler and nothing is simulated: the counts are expectations in closed form, for trials that
arrive at a rung in an order that says nothing about how good they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.capacity import Capacity
from orchestrator.errors import InfeasiblePoint
from orchestrator.estimate import Estimate, Estimated
from orchestrator.samplers import (
    BruteForceSampler,
    CMAESSampler,
    GPSampler,
    GridSampler,
    NSGA2Sampler,
    NSGA3Sampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from orchestrator.schedulers import HalvingSection, HyperbandScheduler, MedianScheduler, NoScheduler, PBTScheduler
from orchestrator.search.cma import population_size
from orchestrator.search.draw import draw
from orchestrator.search.grid import grid_point, num_search_trials
from orchestrator.search.population import num_copies
from orchestrator.search.rungs import rung_tokens
from orchestrator.search.space import parameters, resolve
from orchestrator.search.trial_points import sample_points
from orchestrator.spec import ExperimentSpec, Scalar
from trainer.config import TrainConfig
from trainer.model.size import flops_per_token, memory_estimate, model_size

MAX_SAMPLES = 5
"""Most configurations that are shown."""
_MAX_RUNGS = 50


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the search, in words, and how many points it makes."""

    what: str
    num_points: int


@dataclass(frozen=True, kw_only=True)
class RungPreview:
    """What a rung lets through.

    Attributes:
        tokens: of the base configuration.
        arriving, passing: points expected to arrive there and to go on; None where the rule depends on the values.
    """

    rung: int
    tokens: int
    arriving: float | None
    passing: float | None


@dataclass(frozen=True, kw_only=True)
class SampledPoint:
    """A point of the space with its complete configuration and what that takes.

    Attributes:
        problem: why it cannot run, None if it can.
        memory_gib: of one worker.
    """

    params: dict[str, Scalar]
    config: TrainConfig | None
    problem: str | None
    total_parameters: int | None
    active_parameters: int | None
    flops_per_token: float | None
    memory_gib: float | None


@dataclass(frozen=True, kw_only=True)
class DeviceFit:
    """How many of the points that were tried fit on the nodes of one kind: on their GPUs if a trial takes some.

    Attributes:
        memory_gib: of the host.
        gpu_memory_gib: of one GPU; None where it is not known, and points are taken to fit.
    """

    num_nodes: int
    cpus: float
    gpus: float
    memory_gib: float
    gpu_memory_gib: float | None
    num_fitting: int
    num_tried: int


def phases(spec: ExperimentSpec) -> tuple[Phase, ...]:
    """The parts of the search in their order, without what is empty."""
    left = num_search_trials(spec)
    found = [Phase(what="baselines", num_points=len(spec.baselines))]
    num_enqueued = min(left, len(spec.enqueue))
    found.append(Phase(what="enqueued points", num_points=num_enqueued))
    left -= num_enqueued
    sampler = spec.sampler
    if isinstance(sampler, RandomSampler):
        found.append(Phase(what="drawn at random", num_points=left))
    elif isinstance(sampler, GridSampler | BruteForceSampler):
        order = "in order" if isinstance(sampler, GridSampler) else "in an order drawn by lot"
        found.append(Phase(what=f"points of the grid, {order}", num_points=left))
    elif isinstance(sampler, QMCSampler):
        found.append(Phase(what=f"points of the {sampler.sequence} sequence", num_points=left))
    elif isinstance(sampler, TPESampler | GPSampler):
        known = " or until as many are known, warm start included" if spec.warm_start else ""
        num_random = min(left, max(0, sampler.num_startup_trials - num_enqueued))
        found.append(Phase(what=f"drawn at random{known}", num_points=num_random))
        name = "TPE's model" if isinstance(sampler, TPESampler) else "the Gaussian process"
        found.append(Phase(what=f"chosen by {name}", num_points=left - num_random))
    else:
        found += _generations(spec, sampler, left)
    found.append(Phase(what="changed copies of the best, in place of the worst", num_points=num_copies(spec)))
    return tuple(phase for phase in found if phase.num_points)


def _generations(spec: ExperimentSpec, sampler: CMAESSampler | NSGA2Sampler | NSGA3Sampler, left: int) -> list[Phase]:
    size = population_size(spec, sampler) if isinstance(sampler, CMAESSampler) else sampler.population_size
    size = 50 if size is None else size
    first = min(left, size)
    if isinstance(sampler, CMAESSampler):
        what = f"CMA-ES in generations of {size} completed trials"
        return [Phase(what=what, num_points=left)]
    return [
        Phase(what=f"the first generation of {size}, at random", num_points=first),
        Phase(what=f"{-(-(left - first) // size)} generations of children", num_points=left - first),
    ]


def rung_previews(spec: ExperimentSpec) -> tuple[RungPreview, ...]:
    """What each rung is expected to let through; () without rungs at known tokens."""
    tokens = rung_tokens(spec)[:_MAX_RUNGS]
    scheduler = spec.scheduler
    if isinstance(scheduler, NoScheduler) or not tokens:
        return ()
    num_brackets = scheduler.num_brackets if isinstance(scheduler, HyperbandScheduler) else 1
    total = num_search_trials(spec)
    brackets: list[float | None] = [
        float((total - bracket + num_brackets - 1) // num_brackets) for bracket in range(num_brackets)
    ]
    found: list[RungPreview] = []
    for rung, at in enumerate(tokens):
        arriving = brackets
        brackets = [
            count if count is None or rung < bracket else _passing(spec, count)
            for bracket, count in enumerate(arriving)
        ]
        found.append(RungPreview(rung=rung, tokens=at, arriving=_sum(arriving), passing=_sum(brackets)))
        if isinstance(scheduler, PBTScheduler):
            brackets = arriving  # copies come in place of those that end
    return tuple(found)


def _passing(spec: ExperimentSpec, arriving: float) -> float | None:
    """How many of so many points a rung is expected to let through."""
    scheduler, count = spec.scheduler, round(arriving)
    if isinstance(scheduler, HalvingSection):
        factor = scheduler.reduction_factor
        if spec.synchronous:
            return float(min(count, -(-count // spec.batch_size) * max(1, spec.batch_size // factor)))
        if scheduler.mode == "promote":
            return float(max(1, count // factor)) if count else 0.0
        # The one that arrives as number i goes on if it is among the best max(1, i // factor) of them.
        return sum(max(1, place // factor) / place for place in range(1, count + 1))
    if isinstance(scheduler, PBTScheduler):
        return float(count - int(count * scheduler.quantile + 1e-9))
    if isinstance(scheduler, MedianScheduler):
        judged = max(0, count - scheduler.min_trials)
        return count - judged / 2
    return None


def _sum(counts: Sequence[float | None]) -> float | None:
    known = [count for count in counts if count is not None]
    return round(sum(known), 1) if len(known) == len(counts) else None


def sampled_points(spec: ExperimentSpec, capacity: Capacity | None) -> tuple[SampledPoint, ...]:
    """Some points of the search: those that are enqueued, then the first of a grid, else draws from the space."""
    points = [draw(parameters(spec), spec.seed, index, fixed=fixed) for index, fixed in enumerate(spec.enqueue)]
    if isinstance(spec.sampler, GridSampler):
        points += [grid_point(spec, index) for index in range(min(MAX_SAMPLES, num_search_trials(spec) - len(points)))]
    else:
        points += sample_points(spec)[-MAX_SAMPLES:] if spec.space else [{}]
    return tuple(_sampled(spec, point, capacity) for point in points[:MAX_SAMPLES])


def _sampled(spec: ExperimentSpec, point: dict[str, Scalar], capacity: Capacity | None) -> SampledPoint:
    try:
        config = resolve(spec, point)
    except InfeasiblePoint as error:
        return SampledPoint(
            params=point,
            config=None,
            problem=str(error),
            total_parameters=None,
            active_parameters=None,
            flops_per_token=None,
            memory_gib=None,
        )
    size, memory = model_size(config.model), memory_estimate(config).total_gib
    too_large = capacity is not None and memory > capacity.most_memory_gib(spec.resources)
    place = "GPU" if spec.resources.gpus_per_worker else "node"
    return SampledPoint(
        params=point,
        config=config,
        problem=f"it needs about {memory:.3g} GiB, more than any {place} has" if too_large else None,
        total_parameters=size.total,
        active_parameters=size.active,
        flops_per_token=flops_per_token(config.model, seq_len=config.data.seq_len),
        memory_gib=memory,
    )


def device_fits(spec: ExperimentSpec, capacity: Capacity | None) -> tuple[DeviceFit, ...]:
    """The nodes of the cluster by kind, most memory for a worker first, and how many of the points tried fit there."""
    if capacity is None:
        return ()
    memories = [sampled.memory_gib for sampled in _tried(spec, capacity) if sampled.memory_gib is not None]
    kinds = sorted(
        set(capacity.nodes),
        key=lambda node: (-node.worker_memory_gib(spec.resources), -node.memory_gib, -node.gpus, -node.cpus),
    )
    return tuple(
        DeviceFit(
            num_nodes=capacity.nodes.count(node),
            cpus=node.cpus,
            gpus=node.gpus,
            memory_gib=node.memory_gib,
            gpu_memory_gib=node.gpu_memory_gib or None,
            num_fitting=sum(memory <= node.worker_memory_gib(spec.resources) for memory in memories),
            num_tried=len(memories),
        )
        for node in kinds
    )


def trial_range(spec: ExperimentSpec, capacity: Capacity | None) -> Estimated:
    """How many trials there will be, baselines and seeds included: at most all, at least those that can run."""
    tried = _tried(spec, capacity)
    feasible = sum(sampled.problem is None for sampled in tried)
    searched = num_search_trials(spec) * spec.replicas
    fixed = len(spec.baselines) * spec.replicas
    copies = num_copies(spec)
    population = f"; {copies} of them copies within the population" if copies else ""
    return Estimated(
        value=float(searched + fixed + copies),
        low=float(round(searched * feasible / len(tried)) + fixed),
        high=float(searched + fixed + copies),
        unit="trials",
        basis=f"{feasible} of {len(tried)} points tried can run; the low end without the others{population}; trials "
        "that are tried again or added by hand not counted",
    )


def device_hours(spec: ExperimentSpec, estimate: Estimate) -> Estimated:
    """Hours of all devices together, from the same figures as the duration."""
    resources = spec.resources
    per_worker = resources.gpus_per_worker or resources.cpus_per_worker
    unit = "GPU h" if resources.gpus_per_worker else "CPU h"
    places = max(1.0, estimate.max_parallel_trials.value or 1.0)
    hours = places * resources.num_workers * per_worker / 3600

    def scaled(seconds: float | None) -> float | None:
        return None if seconds is None else seconds * hours

    duration = estimate.duration
    return Estimated(
        value=scaled(duration.value),
        low=scaled(duration.low),
        high=scaled(duration.high),
        unit=unit,
        basis=f"{duration.basis}; {resources.num_workers * per_worker:g} {unit.split()[0]}s a trial",
    )


def _tried(spec: ExperimentSpec, capacity: Capacity | None) -> list[SampledPoint]:
    points = sample_points(spec) if spec.space else [{}]
    return [_sampled(spec, point, capacity) for point in points]
