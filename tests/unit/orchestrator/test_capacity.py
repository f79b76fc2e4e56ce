"""What the cluster holds."""

import pytest

from orchestrator.capacity import Capacity, NodeCapacity, capacity_of
from orchestrator.execution.cluster import gpu_memory_gib
from orchestrator.spec import Resources
from orchestrator.store.records import ServiceRecord


def nodes(*cpus_and_gpus: tuple[float, float]) -> Capacity:
    return Capacity(nodes=tuple(NodeCapacity(cpus=cpus, gpus=gpus, memory_gib=8) for cpus, gpus in cpus_and_gpus))


@pytest.mark.parametrize(
    ("capacity", "resources", "expected"),
    [
        (nodes((2, 0)), {}, 2),
        (nodes((2, 0)), {"cpus_per_worker": 0.5}, 4),
        (nodes((1, 0)), {"cpus_per_worker": 1 / 3}, 3),
        (nodes((2, 0)), {"cpus_per_worker": 3}, 0),
        (nodes((3, 0), (3, 0)), {"cpus_per_worker": 2}, 2),
        (nodes((3, 0), (3, 0)), {"cpus_per_worker": 2, "num_workers": 3}, 0),
        (nodes((8, 2), (8, 0)), {"gpus_per_worker": 1}, 2),
        (nodes((8, 1)), {"gpus_per_worker": 0.25}, 4),
    ],
)
def test_parallel_trials_are_counted_in_whole_workers_per_node(
    capacity: Capacity, resources: dict[str, float], expected: int
) -> None:
    assert capacity.num_parallel_trials(Resources.model_validate(resources)) == expected


def test_capacity_is_read_from_the_services_row() -> None:
    detail = {"nodes": [{"cpus": 2.0, "gpus": 0.0, "memory_gib": 3.5, "name": "other fields do not matter"}]}
    row = ServiceRecord(name="ray", pid=1, url=None, state="ready", detail=detail, heartbeat_ms=0)
    assert capacity_of(row) == Capacity(nodes=(NodeCapacity(cpus=2, gpus=0, memory_gib=3.5),))


GPUS = Capacity(
    nodes=(
        NodeCapacity(cpus=8, gpus=0, memory_gib=512),
        NodeCapacity(cpus=8, gpus=4, memory_gib=64, gpu_memory_gib=16),
        NodeCapacity(cpus=8, gpus=1, memory_gib=32, gpu_memory_gib=80),
    )
)


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, 512),
        ({"gpus_per_worker": 1}, 80),
        ({"gpus_per_worker": 0.5}, 40),
        ({"gpus_per_worker": 2}, 16),  # only the smaller GPUs are two at a node, and a worker trains on one of them
        ({"gpus_per_worker": 8}, 0),
    ],
)
def test_worker_has_the_memory_of_its_share_of_a_gpu_else_of_the_host(
    resources: dict[str, float], expected: float
) -> None:
    assert GPUS.most_memory_gib(Resources.model_validate(resources)) == expected


def test_unknown_memory_of_a_gpu_refuses_nothing() -> None:
    assert nodes((8, 1)).most_memory_gib(Resources(gpus_per_worker=1)) == float("inf")


def test_memory_of_gpus_is_read_from_the_services_row() -> None:
    node = {"cpus": 2.0, "gpus": 1.0, "memory_gib": 3.5, "gpu_memory_gib": 80.0}
    row = ServiceRecord(name="ray", pid=1, url=None, state="ready", detail={"nodes": [node]}, heartbeat_ms=0)
    assert capacity_of(row) == Capacity(nodes=(NodeCapacity(**node),))


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"CPU": 8.0}, 0.0),
        ({"CPU": 8.0, "GPU": 1.0, "accelerator_type:H200": 1.0}, 141.0),
        ({"GPU": 1.0, "accelerator_type:A100": 1.0, "accelerator_type:A100-40G": 1.0}, 80.0),
        ({"GPU": 1.0, "accelerator_type:GeForce-RTX-5090": 1.0}, 0.0),
    ],
)
def test_memory_of_a_gpu_is_that_of_its_type(resources: dict[str, float], expected: float) -> None:
    assert gpu_memory_gib(resources) == expected


def test_capacity_is_unknown_until_ray_is_ready() -> None:
    row = ServiceRecord(name="ray", pid=1, url=None, state="starting", detail={"nodes": []}, heartbeat_ms=0)
    assert capacity_of(row) is None
    assert capacity_of(None) is None
