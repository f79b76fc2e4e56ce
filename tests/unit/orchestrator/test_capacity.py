"""What the cluster holds."""

import pytest

from orchestrator.capacity import Capacity, NodeCapacity, capacity_of
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


def test_capacity_is_unknown_until_ray_is_ready() -> None:
    row = ServiceRecord(name="ray", pid=1, url=None, state="starting", detail={"nodes": []}, heartbeat_ms=0)
    assert capacity_of(row) is None
    assert capacity_of(None) is None
