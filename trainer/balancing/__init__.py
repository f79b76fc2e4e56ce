"""Balancing methods: what keeps the load of the experts even."""

from typing import TYPE_CHECKING

from trainer.registry import Registry

if TYPE_CHECKING:
    from trainer.balancing.base import Balancer

BALANCERS: Registry["Balancer"] = Registry(
    "balancing method",
    {
        "group_balancing_loss": "trainer.balancing.group_balancing_loss:GroupBalancingLoss",
        "load_balancing_loss": "trainer.balancing.load_balancing_loss:LoadBalancingLoss",
        "loss_free_bias": "trainer.balancing.loss_free_bias:LossFreeBias",
        "quantile_balancing": "trainer.balancing.quantile_balancing:QuantileBalancing",
        "router_z_loss": "trainer.balancing.router_z_loss:RouterZLoss",
        "sequence_balancing_loss": "trainer.balancing.sequence_balancing_loss:SequenceBalancingLoss",
    },
)
"""`kind` of a BalancerConfig -> its class."""

__all__ = ["BALANCERS"]
