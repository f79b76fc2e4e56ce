"""Balancing methods. A model uses a list of them; the empty list balances nothing."""

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.section import Section

BalancingScope = Literal["micro_batch", "global_batch"]
"""The tokens whose load a loss evens: those of a micro-batch on its own worker, or those of the whole optimizer step,
all micro-batches and workers together (Qiu et al. 2025, arXiv:2501.11873)."""


class LoadBalancingLossConfig(Section):
    """Switch load-balancing loss, E * sum_e f_e * P_e, per layer, then the mean over layers.

    The expert-level loss of DeepSeekMoE is this one: its f_e carries the factor E / (K T) on the counts, so that it,
    too, is 1 at balance and E / K at collapse (Dai et al. 2024, arXiv:2401.06066, eq. 12-14).

    Source: Fedus et al. 2021, arXiv:2101.03961, eq. 4-6.
    """

    kind: Literal["load_balancing_loss"] = "load_balancing_loss"
    coefficient: float = Field(gt=0, le=10)
    scope: BalancingScope = "micro_batch"
    """Where the shares f_e are taken. `global_batch` is exact, that is the loss of the step as one batch on one worker;
    a step of several micro-batches then routes each of them twice, one more forward pass (a third more FLOPs)."""


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
    over layers.

    Source: Dai et al. 2024, arXiv:2401.06066, eq. 15-17.
    """

    kind: Literal["group_balancing_loss"] = "group_balancing_loss"
    coefficient: float = Field(gt=0, le=10)
    num_groups: int = Field(ge=2, le=1024)
    scope: BalancingScope = "micro_batch"
    """Where the groups' shares are taken, as for the load-balancing loss."""


class RouterZLossConfig(Section):
    """Mean squared logsumexp of the router logits, per layer, then the mean over layers.

    Source: Zoph et al. 2022 (ST-MoE), arXiv:2202.08906, eq. 5.
    """

    kind: Literal["router_z_loss"] = "router_z_loss"
    coefficient: float = Field(gt=0, le=10)


class LossFreeBiasConfig(Section):
    """A bias per expert, used for the selection only and moved by `update_rate` against the load after each step.

    Source: Wang et al. 2024, arXiv:2408.15664, algorithm 1 and, for the proportional update, table 3.
    """

    kind: Literal["loss_free_bias"] = "loss_free_bias"
    update_rate: float = Field(gt=0, le=1)
    update: Literal["sign", "proportional"] = "sign"
    """Move by the sign of (mean load - load), or by (mean load - load) / mean load."""
    centred: bool = True
    """Take the update's mean over the experts out of it, as torchtitan does, so that the biases keep their sum. The
    paper does not."""
    clamp: float | None = Field(default=None, gt=0, le=1000)
    """Largest absolute value a bias may take; null leaves it free."""


class QuantileBalancingConfig(Section):
    """A bias per expert, used for the selection only and solved for after each step rather than nudged.

    With the step's scores and cutoffs (the score a token's first refused expert had), the bias of an expert becomes
    the one at which a share K/E of the tokens would have taken it: the K/E quantile of cutoff - score. No loss, no
    rate to tune.

    Source: Su 2026, https://kexue.fm/archives/11619; in Megatron-Core (NVIDIA/Megatron-LM pull request 5349) and, by
    histograms over the whole batch as here, torchtitan (pytorch/torchtitan pull request 4577, after Kimi K3).
    """

    kind: Literal["quantile_balancing"] = "quantile_balancing"
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the old bias in the new one; 0 takes the step's solution as it is."""
    num_bins: int = Field(default=1024, ge=16, le=65_536, multiple_of=2)
    """Bins of the histograms the quantiles are read from: 4 bytes per bin, expert and layer."""


BalancerConfig = Annotated[
    LoadBalancingLossConfig
    | SequenceBalancingLossConfig
    | GroupBalancingLossConfig
    | RouterZLossConfig
    | LossFreeBiasConfig
    | QuantileBalancingConfig,
    Field(discriminator="kind"),
]
