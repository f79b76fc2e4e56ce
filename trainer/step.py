"""One optimizer step: micro-batches forward and backward, clipping, the update, and what balancing does after it.

Letters: B sequences, L positions, M MoE layers, E experts.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from trainer.balancing.base import Balancer
from trainer.balancing.step_balancing import StepBalancing
from trainer.config import TrainConfig
from trainer.data.mixture import Mixture
from trainer.model.routing import LayerRouting
from trainer.model.transformer import Transformer
from trainer.optimizers.build import set_learning_rate
from trainer.optimizers.grouped import undone_where
from trainer.precision.base import Precision
from trainer.telemetry.step_buffer import StepBuffer
from trainer.update import Update
from trainer.world import World

_WITHOUT_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}
"""Turns off the broadcast of buffers at every forward pass; before torch 2.13 the option has the other name."""


class _MicroBatch(NamedTuple):
    """The sequences of one forward pass, on the device; `documents_BL` is None without document masking."""

    inputs_BL: Tensor
    targets_BL: Tensor
    documents_BL: Tensor | None


class TrainStep:
    """Trains on one global batch per call. Never waits for the device.

    Args:
        config: of the run.
        model: the bare model; wrapped for data-parallel training where there are several workers.
        optimizer, schedule, balancers, precision: as built from the config.
        update: of the model by this optimizer.
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
        update: Update,
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
        self._update = update
        self._schedule = schedule
        self._balancing = StepBalancing(balancers, model=model, world=world)
        self._precision = precision
        self._mixture = mixture
        self._world = world
        # Buffers are not broadcast at a forward pass: every worker computes the same ones from counts that are summed
        # over all. Once, here, they are, which changes nothing: all workers have built or loaded the same.
        self._distributed = (
            DistributedDataParallel(model, gradient_as_bucket_view=True, **_WITHOUT_BUFFERS)
            if world.world_size > 1
            else None
        )

    def __call__(
        self, step: int, buffer: StepBuffer, *, batch_number: int | None = None, lr_factor: float = 1.0
    ) -> float:
        """Do the update number `step` (1-based), leave its telemetry in `buffer`, and return the learning rate.

        Args:
            step: decides the learning rate.
            buffer: takes the telemetry.
            batch_number: of the batch to train on, from 1; None: that of the step.
            lr_factor: multiplies the learning rate.
        """
        lr = self._config.optimizer.lr * self._schedule(step - 1) * lr_factor
        set_learning_rate(self._optimizer, lr)
        self._optimizer.zero_grad(set_to_none=True)
        buffer.begin_step()
        micro_batches = list(self._micro_batches(step if batch_number is None else batch_number))
        self._balancing.begin([partial(self._route, micro_batch) for micro_batch in micro_batches])
        for number, micro_batch in enumerate(micro_batches, start=1):
            self._balancing.begin_micro_batch(number - 1)
            with self._gradient_sync(last=number == len(micro_batches)):
                self._backward(micro_batch, share=1.0 / len(micro_batches), buffer=buffer)
        if (casts_MOC := self._precision.take_cast_counts()) is not None:
            buffer.add_casts(casts_MOC)
        counts_ME = buffer.reduce_step()
        outcome = self._update.step(buffer.step_loss(), number=step)
        buffer.finish_step(
            grad_norm=outcome.grad_norm,
            selection_bias_LE=self._selection_bias_ME(),
            skipped=outcome.skipped,
            group_norms_G=outcome.group_norms_G,
            ratios_R=outcome.ratios_R,
        )
        # A skipped step did not happen: its batch is not one to learn a balance from either.
        with undone_where(outcome.skipped, list(self._model.buffers())):
            self._balancing.end(counts_ME)
        return lr

    def _micro_batches(self, batch_number: int) -> Iterator[_MicroBatch]:
        batch = self._mixture.batch(
            batch_number - 1, self._config.loop.global_batch_size, self._world.rank, self._world.world_size
        )
        for first in range(0, len(batch.inputs_BL), self._micro_batch_size):
            taken = slice(first, first + self._micro_batch_size)
            yield _MicroBatch(
                inputs_BL=self._on_device(batch.inputs_BL[taken]),
                targets_BL=self._on_device(batch.targets_BL[taken]),
                documents_BL=None if batch.documents_BL is None else self._on_device(batch.documents_BL[taken]),
            )

    def _on_device(self, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(rows).to(self._world.device, non_blocking=True)

    def _route(self, micro_batch: _MicroBatch) -> Sequence[LayerRouting]:
        """The routings of a micro-batch alone, by the bare model."""
        with self._precision.autocast():
            return self._model.trunk(micro_batch.inputs_BL, micro_batch.documents_BL)[1]

    def _backward(self, micro_batch: _MicroBatch, *, share: float, buffer: StepBuffer) -> None:
        forward = self._distributed or self._model
        with self._precision.autocast():
            _, routings, loss = forward(*micro_batch)
            balancing_loss = self._balancing.loss(routings)
        total = loss if balancing_loss is None else loss + balancing_loss
        (total * share).backward()
        buffer.add_micro_batch(loss=loss, balancing_loss=balancing_loss, routings=routings, share=share)

    def _gradient_sync(self, *, last: bool) -> AbstractContextManager[None]:
        """Average gradients over the workers with the last micro-batch only."""
        return nullcontext() if self._distributed is None or last else self._distributed.no_sync()

    def _selection_bias_ME(self) -> Tensor | None:
        """The biases this step's tokens were routed with; None where no balancing method has any."""
        biases = [layer.selection_bias_E for layer in self._model.moe_layers()]
        present = [bias_E for bias_E in biases if bias_E is not None]
        return torch.stack(present) if present else None
