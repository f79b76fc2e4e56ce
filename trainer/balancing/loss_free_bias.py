"""Balancing without a loss: a bias per expert steers the selection.

Letters: L mixture-of-experts layers, E experts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.balancing.base import Balancer
from trainer.config.balancing import LossFreeBiasConfig
from trainer.model.routing import LayerRouting
from trainer.model.transformer import Transformer


class LossFreeBias(Balancer):
    """Raises the bias of underloaded experts and lowers that of overloaded ones by `update_rate` after each step.

    The update is sign(mean load - load), unless `centred` is off minus its own mean over the experts, as in
    torchtitan, so that the biases keep their sum and do not drift away from the scores. The proportional update is
    (mean load - load) / mean load, whose mean is 0: a load in units of the mean, so that the rate does not depend on
    the number of tokens. A clamp bounds the biases after the update. The bias never enters the experts' weights.

    Source: Wang et al. 2024, arXiv:2408.15664, algorithm 1 and table 3; the centring, the unit of the proportional
    update and the clamp are not in the paper.
    """

    needs_selection_bias = True

    def __init__(self, config: LossFreeBiasConfig) -> None:
        self.update_rate = config.update_rate
        self.proportional = config.update == "proportional"
        self.centred = config.centred
        self.clamp = config.clamp

    def observe(self, model: Transformer, routings: Sequence[LayerRouting]) -> Tensor | None:
        """Returns int64 demand of each of the router's outputs if some are null experts, which the step's counts lack.

        One by one: were all of them moved by the sign of their mean, they would swing from too many to too few.
        """
        if all(layer.num_null_experts == 0 for layer in model.moe_layers()):
            return None
        return torch.stack([routing.assignments_TE().sum(dim=0) for routing in routings])

    @torch.no_grad()
    def after_step(self, model: Transformer, counts_LE: Tensor, *, observed: Tensor | None = None) -> None:
        counts_LE = counts_LE if observed is None else observed.float()
        mean_L1 = counts_LE.mean(dim=-1, keepdim=True)
        direction_LE = mean_L1 - counts_LE
        direction_LE = direction_LE / mean_L1 if self.proportional else direction_LE.sign()
        if self.centred:
            direction_LE = direction_LE - direction_LE.mean(dim=-1, keepdim=True)
        for layer, direction_E in zip(model.moe_layers(), direction_LE, strict=True):
            assert layer.selection_bias_E is not None, "a model with this method in its config has the buffer"
            layer.selection_bias_E.add_(direction_E, alpha=self.update_rate)
            if self.clamp is not None:
                layer.selection_bias_E.clamp_(-self.clamp, self.clamp)
