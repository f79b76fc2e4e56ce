"""What the balancing methods do in the course of one optimizer step.

Letters: L mixture-of-experts layers, E experts.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainer.balancing.base import Balancer, demand
from trainer.model.routing import LayerRouting
from trainer.model.transformer import Transformer
from trainer.random_state import undisturbed_random_state
from trainer.world import World

RoutingPass = Callable[[], Sequence[LayerRouting]]
"""A forward pass of one micro-batch as far as its routing."""


class StepBalancing:
    """Runs the methods of one model: `begin`, then `begin_micro_batch` and `loss` for each micro-batch, and `end`.

    Never waits for the device.

    Args:
        balancers: the methods.
        model: the bare model.
        world: adds up what is of the whole step.
    """

    def __init__(self, balancers: Sequence[Balancer], *, model: Transformer, world: World) -> None:
        self._balancers = tuple(balancers)
        self._model = model
        self._world = world
        self._needs_step_demand = any(balancer.needs_step_demand for balancer in balancers)
        self._step_demand_LE: Tensor | None = None
        self._observed: list[Tensor | None] = []
        self._seeds: list[int] = []

    def begin(self, routing_passes: Sequence[RoutingPass]) -> None:
        """Start a step of these micro-batches.

        A loss over the whole step needs the demand of all micro-batches before the first backward pass. Where there
        are several they are routed ahead, without gradients: one more forward pass, and the only exact way that does
        not keep the activations of all of them.
        """
        self._observed = [None] * len(self._balancers)
        self._step_demand_LE, self._seeds = None, []
        if not self._needs_step_demand or len(routing_passes) == 1:
            return
        self._seeds = torch.randint(2**63 - 1, (len(routing_passes),)).tolist()
        demands: list[Tensor] = []
        with torch.no_grad(), undisturbed_random_state(self._world.device):
            for number, routing_pass in enumerate(routing_passes):
                self.begin_micro_batch(number)
                demands.append(demand(routing_pass()))
        self._step_demand_LE = self._world.all_reduce_sum(torch.stack(demands).sum(dim=0))

    def begin_micro_batch(self, number: int) -> None:
        """Let this micro-batch, counted from 0, draw the random numbers it drew when it was routed ahead, if it was.

        A seed each, since a backward pass may draw as well (stochastic rounding), and so move what comes after it.
        """
        if self._seeds:
            torch.manual_seed(self._seeds[number])

    def loss(self, routings: Sequence[LayerRouting]) -> Tensor | None:
        """Return the loss of a micro-batch that comes on top of the model's, a float32 scalar; None without one.

        The sum of what the methods add and of what the routers themselves do. To be called once for each micro-batch.
        """
        if not routings:
            return None
        step_demand_LE = self._step_demand_LE
        if self._needs_step_demand and step_demand_LE is None:
            step_demand_LE = self._world.all_reduce_sum(demand(routings))
        for index, balancer in enumerate(self._balancers):
            seen, before = balancer.observe(self._model, routings), self._observed[index]
            self._observed[index] = seen if seen is None or before is None else before + seen
        losses = [balancer.loss(routings, step_demand_LE=step_demand_LE) for balancer in self._balancers]
        terms = [term for term in (*losses, _auxiliary_loss(routings)) if term is not None]
        return torch.stack(terms).sum() if terms else None

    def end(self, counts_LE: Tensor) -> None:
        """Let the methods act on the model, whose step has been done.

        Args:
            counts_LE: float32 routed pairs of the whole step, summed over micro-batches and workers.
        """
        for balancer, observed in zip(self._balancers, self._observed, strict=True):
            if observed is not None:
                observed = self._world.all_reduce_sum(observed)
            balancer.after_step(self._model, counts_LE, observed=observed)


def _auxiliary_loss(routings: Sequence[LayerRouting]) -> Tensor | None:
    """Return the mean over layers of the loss of their routers; None if they have none."""
    losses = [routing.auxiliary_loss for routing in routings if routing.auxiliary_loss is not None]
    return torch.stack(losses).mean() if losses else None
