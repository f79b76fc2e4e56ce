"""World: the workers of one run, and the few collective operations the loop needs.

One worker is the normal case; every operation is then the identity, so the loop has no second code path.
"""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This worker's place among the workers of its run.

    Attributes:
        rank: 0-based index of this worker. Rank 0 writes and reports.
        world_size: number of workers.
        device: where this worker's tensors live.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank={self.rank} is outside 0..{self.world_size - 1} (world_size={self.world_size})")
        if self.world_size > 1 and not dist.is_initialized():
            raise ValueError(
                f"world_size={self.world_size} needs an initialised process group; call init_process_group first"
            )

    @classmethod
    def of_process_group(cls, device: torch.device) -> "World":
        """Return the world of the default process group: gloo for the CPU, nccl for CUDA."""
        if not dist.is_initialized():
            raise ValueError("there is no process group; call torch.distributed.init_process_group first")
        return cls(rank=dist.get_rank(), world_size=dist.get_world_size(), device=device)

    @property
    def is_main(self) -> bool:
        """Whether this is the worker that writes and reports."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Add up `tensor` over the workers in place and return it."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
        return tensor

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """Take the elementwise maximum of `tensor` over the workers in place and return it."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether any worker passed True. With several workers this waits for all of them."""
        if self.world_size == 1:
            return flag
        value = torch.tensor([int(flag)], dtype=torch.int32, device=self.device)
        return bool(self.all_reduce_max(value).item())

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every worker's `tensor` (same shape and dtype on all), in the order of ranks."""
        if self.world_size == 1:
            return [tensor]
        received = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(received, tensor.contiguous())
        return received

    def barrier(self) -> None:
        """Wait until every worker has come here."""
        if self.world_size > 1:
            dist.barrier()
