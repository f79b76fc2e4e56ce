"""How many trials run at a time."""

import pytest

from orchestrator.execution.cluster import Node
from orchestrator.execution.driver import places
from tests.support.specs import experiment_spec

ONE = Node(cpus=4.0, gpus=1.0, memory_gib=8.0)


@pytest.mark.parametrize(
    ("resources", "nodes", "expected"),
    [
        ({}, [ONE], 4),
        ({"cpus_per_worker": 0.5}, [ONE], 8),
        ({"cpus_per_worker": 0.1}, [ONE], 40),
        ({"cpus_per_worker": 3}, [ONE, ONE], 2),  # the rests of two nodes make no worker
        ({"num_workers": 2}, [ONE], 2),
        ({"num_workers": 3}, [ONE, ONE], 2),
        ({"gpus_per_worker": 1}, [ONE, ONE], 2),
        ({"gpus_per_worker": 0.5}, [ONE], 2),
    ],
)
def test_trials_fill_the_cluster(resources: dict[str, float], nodes: list[Node], expected: int) -> None:
    room = places(experiment_spec(resources=resources), nodes)
    assert room is not None
    assert room.max_concurrent == expected


@pytest.mark.parametrize("resources", [{"num_workers": 5}, {"cpus_per_worker": 5}, {"gpus_per_worker": 2}])
def test_trial_that_never_fits_gets_no_place(resources: dict[str, float]) -> None:
    assert places(experiment_spec(resources=resources), [ONE]) is None


def test_user_may_ask_for_fewer_at_a_time() -> None:
    room = places(experiment_spec(max_parallel_trials=2), [ONE])
    assert room is not None
    assert room.max_concurrent == 2


def test_threads_are_the_whole_cpus_of_a_worker() -> None:
    room = places(experiment_spec(resources={"cpus_per_worker": 2.5}), [ONE])
    assert room is not None
    assert (room.num_threads, room.use_gpu) == (2, False)
