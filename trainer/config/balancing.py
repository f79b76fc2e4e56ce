"""Balancing methods. A model uses a list of them; the empty list balances nothing."""

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.section import Section


class LoadBalancingLossConfig(Section):
    """Switch load-balancing loss, E * sum_e f_e * P_e, per layer, then the mean over layers.

    Source: Fedus et al. 2021, arXiv:2101.03961, eq. 4-6.
    """

    kind: Literal["load_balancing_loss"] = "load_balancing_loss"
    coefficient: float = Field(gt=0, le=10)


class RouterZLossConfig(Section):
    """Mean squared logsumexp of the router logits, per layer, then the mean over layers.

    Source: Zoph et al. 2022 (ST-MoE), arXiv:2202.08906, eq. 5.
    """

    kind: Literal["router_z_loss"] = "router_z_loss"
    coefficient: float = Field(gt=0, le=10)


class LossFreeBiasConfig(Section):
    """A bias per expert, used for the selection only and moved by `update_rate` against the load after each step.

    Source: Wang et al. 2024, arXiv:2408.15664, algorithm 1; the sign is centred as in torchtitan.
    """

    kind: Literal["loss_free_bias"] = "loss_free_bias"
    update_rate: float = Field(gt=0, le=1)


BalancerConfig = Annotated[
    LoadBalancingLossConfig | RouterZLossConfig | LossFreeBiasConfig, Field(discriminator="kind")
]
