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


class SequenceBalancingLossConfig(Section):
    """The same balance within each sequence: E / (K L) * sum_e n_e * P_e, per sequence and layer, then the mean.

    DeepSeek-V3 adds it at 1e-4 beside the loss-free bias, against extremes within one sequence. Does not depend on
    the micro-batch size or the number of workers.

    Source: DeepSeek-AI 2024, arXiv:2412.19437, eq. 17-20.
    """

    kind: Literal["sequence_balancing_loss"] = "sequence_balancing_loss"
    coefficient: float = Field(gt=0, le=10)


class GroupBalancingLossConfig(Section):
    """Balance between groups of experts, whatever the balance within them: the device-level loss of DeepSeekMoE.

    The experts stand in `num_groups` groups of equal size, as for the group-limited router. Per layer, then the mean
    over layers, of each micro-batch.

    Source: Dai et al. 2024, arXiv:2401.06066, eq. 15-17.
    """

    kind: Literal["group_balancing_loss"] = "group_balancing_loss"
    coefficient: float = Field(gt=0, le=10)
    num_groups: int = Field(ge=2, le=1024)


class RouterZLossConfig(Section):
    """Mean squared logsumexp of the router logits, per layer, then the mean over layers.

    Source: Zoph et al. 2022 (ST-MoE), arXiv:2202.08906, eq. 5.
    """

    kind: Literal["router_z_loss"] = "router_z_loss"
    coefficient: float = Field(gt=0, le=10)


class LossFreeBiasConfig(Section):
    """A bias per expert, used for the selection only and moved by `update_rate` against the load after each step.

    Source: Wang et al. 2024, arXiv:2408.15664, algorithm 1 and, for the proportional update, table 3; the update is
    centred as in torchtitan.
    """

    kind: Literal["loss_free_bias"] = "loss_free_bias"
    update_rate: float = Field(gt=0, le=1)
    update: Literal["sign", "proportional"] = "sign"
    """Move by the sign of (mean load - load), or by (mean load - load) / mean load."""
    clamp: float | None = Field(default=None, gt=0, le=1000)
    """Largest absolute value a bias may take; null leaves it free."""


BalancerConfig = Annotated[
    LoadBalancingLossConfig
    | SequenceBalancingLossConfig
    | GroupBalancingLossConfig
    | RouterZLossConfig
    | LossFreeBiasConfig,
    Field(discriminator="kind"),
]
