"""What the cluster holds, as the `ray` service last reported it."""

import math
from dataclasses import dataclass

from orchestrator.allocation import Need
from orchestrator.spec import ExperimentSpec, Resources
from orchestrator.store.records import ServiceRecord
from trainer.model.size import memory_estimate

_DUST = 1e-9
"""A third of a CPU three times is one CPU."""


@dataclass(frozen=True, kw_only=True)
class NodeCapacity:
    """One node of the cluster.

    Attributes:
        memory_gib: of the host.
        gpu_memory_gib: of one of its GPUs; 0 where it is not known.
    """

    cpus: float
    gpus: float
    memory_gib: float
    gpu_memory_gib: float = 0.0

    def worker_memory_gib(self, resources: Resources) -> float:
        """The most that a worker of these resources finds here: on its share of a GPU if it takes one, else on the
        host. 0 where there is no GPU for it, infinite where the memory of the GPUs is not known."""
        share = min(1.0, resources.gpus_per_worker)  # a worker trains on one device, however many are kept for it
        if not share:
            return self.memory_gib
        if self.gpus + _DUST < resources.gpus_per_worker:
            return 0.0
        return share * self.gpu_memory_gib if self.gpu_memory_gib else math.inf


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The nodes of the cluster that trials can run on; at least one."""

    nodes: tuple[NodeCapacity, ...]

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    def most_memory_gib(self, resources: Resources) -> float:
        """The most memory that a worker of these resources finds on any node."""
        return max(node.worker_memory_gib(resources) for node in self.nodes)

    def num_parallel_trials(self, resources: Resources) -> int:
        """How many trials of these resources run at a time; 0 if not even one does.

        Counts whole workers per node, since a worker cannot be split over two.
        """
        slots = sum(int(_workers_on(node, resources)) for node in self.nodes)
        return slots // resources.num_workers


def memory_place(resources: Resources) -> str:
    """Where a worker of these resources finds the most memory, in words."""
    share = resources.gpus_per_worker
    if not share:
        return "the largest node"
    return "the largest GPU" if share >= 1 else f"{share:g} of the largest GPU"


def capacity_of(service: ServiceRecord | None) -> Capacity | None:
    """The capacity that the `ray` service's row tells of, or None while it tells of none."""
    nodes = [] if service is None or service.state != "ready" else service.detail.get("nodes", [])
    if not nodes:
        return None
    return Capacity(
        nodes=tuple(
            NodeCapacity(
                cpus=float(node["cpus"]),
                gpus=float(node["gpus"]),
                memory_gib=float(node["memory_gib"]),
                gpu_memory_gib=float(node.get("gpu_memory_gib", 0.0)),
            )
            for node in nodes
        )
    )


def need_of(spec: ExperimentSpec) -> Need:
    """What one trial of `spec` takes of the cluster.

    The host's memory is what the spec says, else that of the base in closed form; a worker on a GPU has its memory
    there, and takes none of the host's that is worth counting.
    """
    resources = spec.resources
    memory_gib = resources.memory_gib_per_worker
    if memory_gib is None:
        memory_gib = 0.0 if resources.gpus_per_worker else memory_estimate(spec.base).total_gib
    return Need(
        num_workers=resources.num_workers,
        cpus=resources.cpus_per_worker,
        gpus=resources.gpus_per_worker,
        memory_gib=memory_gib,
    )


def _workers_on(node: NodeCapacity, resources: Resources) -> float:
    by_cpu = node.cpus / resources.cpus_per_worker
    by_gpu = node.gpus / resources.gpus_per_worker if resources.gpus_per_worker else float("inf")
    return min(by_cpu, by_gpu) + _DUST
