"""StepBuffer: what each step produces stays on the device, row by row, until one copy per logging interval.

A step never waits for the device: nothing here reads a value on the host except `drain`.

Letters: `L` MoE layers, `E` experts, `S` steps since the last drain, `W` values of a row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import NUM_SUM_SLOTS, STAT_NAMES
from kernels.quantize import COUNT_NAMES, OPERAND_NAMES
from trainer.gradient_norms import NUM_RATIOS, num_groups
from trainer.metrics.router_health import RouterSums
from trainer.model.routing import LayerRouting
from trainer.world import World

MAX_BUFFER_BYTES = 64 * 2**20
"""Bound on the buffer; a longer logging interval is then copied in several parts."""

_COVERAGE_PER_LAYER = 4
"""Pairs dropped, pairs sent to null experts, tokens without an expert, squares (`RouterStats.coverage_4`)."""
_MICRO_PER_LAYER = 1
"""MaxVio, added up over micro-batches by their share."""
_NUM_MAX_SLOTS = len(STAT_NAMES) - NUM_SUM_SLOTS
_CASTS_PER_LAYER = len(OPERAND_NAMES) * len(COUNT_NAMES)


class StepRows(NamedTuple):
    """The drained steps on the host: float64 [S] each; `router` is None for a dense model.

    groups: float64 [S, groups], norms of the gradients of parts of the model (`trainer.gradient_norms`).
    ratios: float64 [S, `NUM_RATIOS`], updates and gradients over the parameters by role, then what is measured with
        them of the experts' gradient; NaN where they were not measured.
    casts: float64 [S, L, operands, counts], what casts of the experts' matmuls lost; None without a narrow precision.
    """

    loss: NDArray[np.float64]
    balancing_loss: NDArray[np.float64]
    grad_norm: NDArray[np.float64]
    skipped: NDArray[np.float64]
    groups: NDArray[np.float64]
    ratios: NDArray[np.float64]
    router: RouterSums | None
    casts: NDArray[np.float64] | None = None


class StepBuffer:
    """A ring of `capacity` rows on the device, one per step.

    A row holds, in float64 so that counts stay exact: sums over workers (losses, counts, probability sums, statistics),
    then maxima over workers (largest logit), then values every worker has alike (gradient norm, whether the step was
    skipped, bias ranges, norms of parts of the gradient, ratios of updates).

    Args:
        log_every_steps: steps between drains.
        num_layers, num_experts, num_null_experts: of the MoE layers; 0 for a dense model.
        step_tokens: tokens of a step over all workers.
        world: reduces the rows.
        quantizes: whether the experts' matmuls are in a narrow format, whose casts are counted.
    """

    def __init__(
        self,
        *,
        log_every_steps: int,
        num_layers: int,
        num_experts: int,
        step_tokens: int,
        world: World,
        num_null_experts: int = 0,
        quantizes: bool = False,
    ) -> None:
        self._shape_LE = (num_layers, num_experts)
        self._num_outputs = num_experts + num_null_experts
        self._step_tokens = step_tokens
        self._world = world
        # Per layer: counts, probability sums, slots, coverage, MaxVio of micro-batches.
        per_layer = num_experts + self._num_outputs + NUM_SUM_SLOTS + _COVERAGE_PER_LAYER + _MICRO_PER_LAYER
        self._num_routing_sums = 2 + num_layers * per_layer
        self._num_sums = self._num_routing_sums + (num_layers * _CASTS_PER_LAYER if quantizes else 0)
        self._num_maxima = num_layers * _NUM_MAX_SLOTS
        self._first_local = self._num_sums + self._num_maxima
        self._first_group = self._first_local + 2 + num_layers
        self._first_ratio = self._first_group + num_groups(num_layers)
        width = self._first_ratio + NUM_RATIOS
        self.capacity = max(1, min(log_every_steps, MAX_BUFFER_BYTES // (8 * width)))
        """Steps that fit before a drain is due."""
        self._rows_SW = torch.zeros(self.capacity, width, dtype=torch.float64, device=world.device)
        self._num_rows = 0

    @property
    def num_rows(self) -> int:
        """Steps not yet drained."""
        return self._num_rows

    def begin_step(self) -> None:
        """Open the row of the next step."""
        assert self._num_rows < self.capacity, "the loop drains a full buffer before the next step"
        row_W = self._rows_SW[self._num_rows]
        row_W.zero_()
        row_W[self._num_sums : self._num_sums + self._num_maxima] = -torch.inf
        self._num_rows += 1

    def add_micro_batch(
        self, *, loss: Tensor, balancing_loss: Tensor | None, routings: Sequence[LayerRouting], share: float
    ) -> None:
        """Add one micro-batch to the open row.

        Args:
            loss, balancing_loss: scalars, means over the micro-batch's tokens.
            routings: one per MoE layer.
            share: this micro-batch's part of this worker's tokens of the step.
        """
        row_W = self._rows_SW[self._num_rows - 1]
        row_W[0].add_(loss.detach(), alpha=share)
        if balancing_loss is not None:
            row_W[1].add_(balancing_loss.detach(), alpha=share)
        if not routings:
            return
        stats_LS = torch.stack([routing.stats.stats_S for routing in routings])
        counts_LE = torch.stack([routing.stats.counts_E for routing in routings])
        sums = [
            counts_LE.flatten(),
            torch.stack([routing.stats.prob_sum_E for routing in routings]).flatten(),
            stats_LS[:, :NUM_SUM_SLOTS].flatten(),
        ]
        coverage = [routing.stats.coverage_4 for routing in routings if routing.stats.coverage_4 is not None]
        if coverage:  # else there is nothing to add, and the zeros of the row stand
            assert len(coverage) == len(routings), "the MoE layers of a model are alike"
            sums.append(torch.stack(coverage).flatten())
        added_W = torch.cat([part.double() for part in sums])
        row_W[2 : 2 + len(added_W)].add_(added_W)
        violation_L = counts_LE.amax(dim=1) * counts_LE.shape[1] / counts_LE.sum(dim=1).clamp(min=1) - 1.0
        num_layers = self._shape_LE[0]
        row_W[self._num_routing_sums - num_layers : self._num_routing_sums].add_(violation_L.clamp(min=0), alpha=share)
        maxima_W = row_W[self._num_sums : self._num_sums + self._num_maxima]
        torch.maximum(maxima_W, stats_LS[:, NUM_SUM_SLOTS:].flatten().double(), out=maxima_W)

    def add_casts(self, counts_LOC: Tensor) -> None:
        """Add what casts lost to the open row (`Precision.take_cast_counts`)."""
        self._rows_SW[self._num_rows - 1, self._num_routing_sums : self._num_sums].add_(counts_LOC.flatten())

    def reduce_step(self) -> Tensor:
        """Sum the open row over the workers; return the step's counts, float32 [L, E], for the balancers."""
        row_W = self._rows_SW[self._num_rows - 1]
        self._world.all_reduce_sum(row_W[: self._num_sums])
        num_pairs = self._shape_LE[0] * self._shape_LE[1]
        return row_W[2 : 2 + num_pairs].float().view(self._shape_LE)

    def step_loss(self) -> Tensor:
        """Return the loss of the open row's global batch, float64 scalar, once `reduce_step` has summed it."""
        return self._rows_SW[self._num_rows - 1, 0] / self._world.world_size

    def finish_step(
        self,
        *,
        grad_norm: Tensor,
        selection_bias_LE: Tensor | None,
        skipped: Tensor | None = None,
        group_norms_G: Tensor | None = None,
        ratios_R: Tensor | None = None,
    ) -> None:
        """Complete the open row with what is the same on every worker.

        Args:
            grad_norm: scalar.
            selection_bias_LE: biases of the selection; None without.
            skipped: bool scalar; None: no step is ever skipped.
            group_norms_G: `trainer.gradient_norms.GroupedNorms.of`; None leaves zeros.
            ratios_R: `UpdateOutcome.ratios_R`; None: not measured at this step.
        """
        row_W = self._rows_SW[self._num_rows - 1]
        row_W[self._first_local].copy_(grad_norm)
        if skipped is not None:
            row_W[self._first_local + 1].copy_(skipped)
        if selection_bias_LE is not None:
            smallest_L, largest_L = torch.aminmax(selection_bias_LE, dim=1)
            row_W[self._first_local + 2 : self._first_group].copy_(largest_L - smallest_L)
        if group_norms_G is not None:
            row_W[self._first_group : self._first_ratio].copy_(group_norms_G)
        if ratios_R is None:
            row_W[self._first_ratio :] = torch.nan
        else:
            row_W[self._first_ratio :].copy_(ratios_R)

    def drain(self) -> StepRows:
        """Copy the finished rows to the host and empty the buffer: the one place where the host waits."""
        num_rows, self._num_rows = self._num_rows, 0
        rows_SW = self._rows_SW[:num_rows]
        first_max, first_local = self._num_sums, self._first_local
        if self._num_maxima and num_rows:
            rows_SW[:, first_max:first_local] = self._world.all_reduce_max(
                rows_SW[:, first_max:first_local].contiguous()
            )
        values = rows_SW.cpu().numpy().copy()
        return StepRows(
            loss=values[:, 0] / self._world.world_size,
            balancing_loss=values[:, 1] / self._world.world_size,
            grad_norm=values[:, first_local],
            skipped=values[:, first_local + 1],
            groups=values[:, self._first_group : self._first_ratio],
            ratios=values[:, self._first_ratio :],
            router=self._router_sums(values),
            casts=self._casts(values),
        )

    def _casts(self, values: NDArray[np.float64]) -> NDArray[np.float64] | None:
        if self._num_sums == self._num_routing_sums:
            return None
        shape = (len(values), self._shape_LE[0], len(OPERAND_NAMES), len(COUNT_NAMES))
        return values[:, self._num_routing_sums : self._num_sums].reshape(shape)

    def _router_sums(self, values: NDArray[np.float64]) -> RouterSums | None:
        num_layers, num_experts = self._shape_LE
        if not num_layers:
            return None
        num_rows = len(values)
        widths = (num_experts, self._num_outputs, NUM_SUM_SLOTS, _COVERAGE_PER_LAYER, _MICRO_PER_LAYER)
        ends = 2 + num_layers * np.cumsum(widths)
        counts, probs, stats, coverage, micro = (
            values[:, end - num_layers * width : end].reshape(num_rows, num_layers, width)
            for end, width in zip(ends, widths, strict=True)
        )
        maxima = values[:, self._num_sums : self._num_sums + self._num_maxima].reshape(num_rows, num_layers, -1)

        def total(name: str) -> NDArray[np.float64]:
            return stats[..., STAT_NAMES.index(name)]

        return RouterSums(
            counts_E=counts.astype(np.int64),
            prob_sum_E=probs,
            entropy_sum=total("token_entropy_sum"),
            entropy_sq_sum=total("token_entropy_sq_sum"),
            logsumexp_sum=total("logsumexp_sum"),
            z_sum=total("logsumexp_sq_sum"),
            top_k_mass_sum=total("top_k_mass_sum"),
            margin_sum=total("margin_sum"),
            logit_sq_sum=total("logit_sq_sum"),
            micro_max_violation=micro[..., 0] / self._world.world_size,
            max_logit=maxima[..., STAT_NAMES.index("logit_max") - NUM_SUM_SLOTS],
            negated_min_logit=maxima[..., STAT_NAMES.index("negated_logit_max") - NUM_SUM_SLOTS],
            bias_range=values[:, self._first_local + 2 : self._first_group],
            num_tokens=self._step_tokens,
            num_dropped=coverage[..., 0],
            num_null=coverage[..., 1],
            num_uncovered=coverage[..., 2],
            experts_sq_sum=coverage[..., 3],
        )
