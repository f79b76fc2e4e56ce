"""One worker is a world whose collectives are identities; a wrong place in a world is refused."""

import pytest
import torch

from trainer.world import World


def test_collectives_of_one_worker_change_nothing():
    world = World()
    tensor = torch.tensor([1.0, 2.0])
    assert world.all_reduce_sum(tensor) is tensor
    assert world.all_reduce_max(tensor) is tensor
    assert world.gather(tensor) == [tensor]
    assert world.any(True)
    assert not world.any(False)
    assert tensor.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(("rank", "world_size"), [(1, 1), (-1, 1), (2, 2)])
def test_rank_outside_of_the_world_is_refused(rank: int, world_size: int):
    with pytest.raises(ValueError, match=f"rank={rank}"):
        World(rank=rank, world_size=world_size)


def test_several_workers_need_a_process_group():
    with pytest.raises(ValueError, match="init_process_group"):
        World(rank=0, world_size=2)
    with pytest.raises(ValueError, match="init_process_group"):
        World.of_process_group(torch.device("cpu"))
