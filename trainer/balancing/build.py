"""Builds the balancing methods of a model."""

from trainer.balancing import BALANCERS
from trainer.balancing.base import Balancer
from trainer.config.model import MoEConfig


def build_balancers(config: MoEConfig | None) -> tuple[Balancer, ...]:
    """Returns the methods in the order of the config; none for a dense model."""
    if config is None:
        return ()
    return tuple(BALANCERS[balancer.kind](balancer) for balancer in config.balancing)
