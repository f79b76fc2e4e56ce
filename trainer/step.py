"""One optimizer step: micro-batches forward and backward, clipping, the update, and what balancing does after it.

Letters: B sequences, L positions, M MoE layers, E experts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from trainer.balancing.base import Balancer
from trainer.config import TrainConfig
from trainer.data.mixture import Mixture
from trainer.model.transformer import Transformer
from trainer.optimizers.build import set_learning_rate
from trainer.precision.base import Precision
from trainer.telemetry.step_buffer import StepBuffer
from trainer.world import World


class TrainStep:
    """Trains on one global batch per call. Never waits for the device.

    Args:
        config: of the run.
        model: the bare model; wrapped for data-parallel training where there are several workers.
        optimizer, schedule, balancers, precision: as built from the config.
        mixture: where the batches come from.
        world: this worker among the others.

    Raises:
        ValueError: the global batch cannot be divided over the workers and micro-batches.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        model: Transformer,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        balancers: Sequence[Balancer],
        precision: Precision,
        mixture: Mixture,
        world: World,
    ) -> None:
        batch_size, micro_batch_size = config.loop.global_batch_size, config.loop.micro_batch_size
        if batch_size % world.world_size:
            raise ValueError(
                f"loop.global_batch_size={batch_size} is not a multiple of the {world.world_size} workers; "
                "change one of them"
            )
        # A worker's share of the batch may be smaller than a micro-batch: more workers must not need another config.
        self._micro_batch_size = min(micro_batch_size, batch_size // world.world_size)
        if batch_size // world.world_size % self._micro_batch_size:
            raise ValueError(
                f"loop.global_batch_size={batch_size} over {world.world_size} workers is "
                f"{batch_size // world.world_size} sequences each, not a multiple of "
                f"loop.micro_batch_size={micro_batch_size}; choose a divisor"
            )
        self._config = config
        self._model = model
        self._optimizer = optimizer
        self._schedule = schedule
        self._balancers = tuple(balancers)
        self._precision = precision
        self._mixture = mixture
        self._world = world
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Buffers are not broadcast: every worker computes the same ones from counts that are summed over all.
        self._distributed = (
            DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
            if world.world_size > 1
            else None
        )

    def __call__(self, step: int, buffer: StepBuffer) -> float:
        """Do the update number `step` (1-based), leave its telemetry in `buffer`, and return the learning rate."""
        lr = self._config.optimizer.lr * self._schedule(step - 1)
        set_learning_rate(self._optimizer, lr)
        self._optimizer.zero_grad(set_to_none=True)
        buffer.begin_step()
        micro_batches = list(self._micro_batches(step))
        for number, (inputs_BL, targets_BL) in enumerate(micro_batches, start=1):
            with self._gradient_sync(last=number == len(micro_batches)):
                self._backward(inputs_BL, targets_BL, share=1.0 / len(micro_batches), buffer=buffer)
        counts_ME = buffer.reduce_step()
        grad_norm = torch.nn.utils.get_total_norm(
            [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        )
        if self._config.loop.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._config.loop.max_grad_norm, grad_norm)
        self._optimizer.step()
        buffer.finish_step(grad_norm=grad_norm, selection_bias_LE=self._selection_bias_ME())
        for balancer in self._balancers:
            balancer.after_step(self._model, counts_ME)
        return lr

    def _micro_batches(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        batch = self._mixture.batch(
            step - 1, self._config.loop.global_batch_size, self._world.rank, self._world.world_size
        )
        for first in range(0, len(batch.inputs_BL), self._micro_batch_size):
            taken = slice(first, first + self._micro_batch_size)
            yield (
                torch.from_numpy(batch.inputs_BL[taken]).to(self._world.device, non_blocking=True),
                torch.from_numpy(batch.targets_BL[taken]).to(self._world.device, non_blocking=True),
            )

    def _backward(self, inputs_BL: Tensor, targets_BL: Tensor, *, share: float, buffer: StepBuffer) -> None:
        forward = self._distributed or self._model
        with self._precision.autocast():
            _, routings, loss = forward(inputs_BL, targets_BL)
            terms = [term for balancer in self._balancers if (term := balancer.loss(routings)) is not None]
        balancing_loss = torch.stack(terms).sum() if terms else None
        total = loss if balancing_loss is None else loss + balancing_loss
        (total * share).backward()
        buffer.add_micro_batch(loss=loss, balancing_loss=balancing_loss, routings=routings, share=share)

    def _gradient_sync(self, *, last: bool) -> AbstractContextManager[None]:
        """Average gradients over the workers with the last micro-batch only."""
        return nullcontext() if self._distributed is None or last else self._distributed.no_sync()

    def _selection_bias_ME(self) -> Tensor | None:
        """The biases this step's tokens were routed with, or None without loss-free balancing."""
        biases = [layer.selection_bias_E for layer in self._model.moe_layers()]
        present = [bias_E for bias_E in biases if bias_E is not None]
        return torch.stack(present) if present else None
