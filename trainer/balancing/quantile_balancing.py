"""Balancing without a loss: the selection biases are solved for, from quantiles of a step's margins.

Letters: L mixture-of-experts layers, T tokens, E experts, K experts per token, R ranks of a token's experts, H bins.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.balancing.base import Balancer
from trainer.config.balancing import QuantileBalancingConfig
from trainer.model.routing import LayerRouting
from trainer.model.transformer import Transformer

_STRETCH = 8.0
"""How much finer the bins are near 0: they grow as sinh from 1e-5 of the range at 1024 bins to 1.6 % of their value."""


class QuantileBalancing(Balancer):
    """Gives each expert the bias at which, the others' held, a share K/E of the step's tokens would have taken it.

    Let s_te be a score, b_e the bias, and c_t the token's cutoff: the (K+1)-th largest of s_t + b. Expert e takes token
    t iff its margin d_te = c_t - s_te - b_e is negative, so adding the K/E quantile of d_e to b_e gives the expert its
    share. All experts move at once, by a share 1 - `smoothing` of that; then the mean of the biases is taken out. A
    layer whose load is even keeps its biases.

    Source: Su 2026, https://kexue.fm/archives/11619: one step of coordinate descent on the dual of the assignment
    problem. Megatron-Core (NVIDIA/Megatron-LM pull request 5349) takes the mean of the micro-batches' quantiles; here,
    as in torchtitan (pytorch/torchtitan pull request 4577), histograms of the margins are added up over micro-batches
    and workers, so that the split of a step does not matter. Ours differ in their bins: about 0, where a balanced
    expert's quantile is, they are fine enough for softmax scores of many experts.
    """

    needs_selection_bias = True

    def __init__(self, config: QuantileBalancingConfig) -> None:
        self.smoothing = config.smoothing
        self.num_bins = config.num_bins

    @torch.no_grad()
    def observe(self, model: Transformer, routings: Sequence[LayerRouting]) -> Tensor | None:
        """Returns int32 histogram_LEH: tokens of the micro-batch per bin of their margin to the expert."""
        histograms = [
            margin_histogram(margins(routing, bias_E), largest=_largest_margin(bias_E), num_bins=self.num_bins)
            for routing, bias_E in zip(routings, _biases(model), strict=True)
        ]
        return torch.stack(histograms) if histograms else None

    @torch.no_grad()
    def after_step(self, model: Transformer, counts_LE: Tensor, *, observed: Tensor | None = None) -> None:
        del counts_LE
        moe = model.config.moe
        assert moe is not None, "a model with this method in its config has MoE layers"
        assert observed is not None, "the step adds up what `observe` returned"
        share = moe.top_k / moe.num_router_outputs
        for bias_E, histogram_EH in zip(_biases(model), observed, strict=True):
            quantile_E = margin_quantile(histogram_EH, share=share, largest=_largest_margin(bias_E))
            bias_E.add_(quantile_E, alpha=1.0 - self.smoothing)
            bias_E.sub_(bias_E.mean())


def margins(routing: LayerRouting, bias_E: Tensor) -> Tensor:
    """Returns float32 margins_TE: what the bias of an expert would have to grow by for it to tie for the last place.

    Negative for a token's chosen experts, 0 for the first it refused.
    """
    logits_TE = routing.logits_TE.detach().float()
    biased_TE = (logits_TE.softmax(dim=-1) if routing.score == "softmax" else logits_TE.sigmoid()) + bias_E
    top_k = routing.expert_ids_N.shape[0] // routing.num_tokens
    best_TR = biased_TE.topk(top_k + 1, dim=-1).values
    return best_TR[:, -1:] - biased_TE


def margin_histogram(margins_TE: Tensor, *, largest: Tensor, num_bins: int) -> Tensor:
    """Returns int32 histogram_EH of each expert's margins in bins between -largest and largest, 0 being an edge."""
    num_experts = margins_TE.shape[1]
    place_TE = torch.asinh(margins_TE / largest * math.sinh(_STRETCH)) / _STRETCH  # -1 to 1
    bin_TE = ((place_TE + 1.0) * (num_bins / 2)).long().clamp_(0, num_bins - 1)
    first_E = torch.arange(num_experts, device=bin_TE.device) * num_bins
    histogram = torch.zeros(num_experts * num_bins, dtype=torch.int32, device=bin_TE.device)
    histogram.scatter_add_(0, (bin_TE + first_E).flatten(), histogram.new_ones(1).expand(bin_TE.numel()))
    return histogram.view(num_experts, num_bins)


def margin_quantile(histogram_EH: Tensor, *, share: float, largest: Tensor) -> Tensor:
    """Returns float32 quantile_E: the value below which a share of each expert's margins lies.

    Linear within a bin. Where an interval of values will do, its value nearest to 0.
    """
    num_bins = histogram_EH.shape[1]
    reached_EH = histogram_EH.cumsum(dim=1, dtype=torch.float64)
    wanted_E1 = reached_EH[:, -1:] * share
    before_EH = reached_EH - histogram_EH
    lowest_E1 = torch.searchsorted(reached_EH, wanted_E1).clamp_(max=num_bins - 1)
    within_E1 = (wanted_E1 - before_EH.gather(1, lowest_E1)) / histogram_EH.gather(1, lowest_E1).clamp(min=1)
    highest_E1 = torch.searchsorted(reached_EH, wanted_E1, right=True).clamp_(max=num_bins)
    # An interval ends at the lower edge of the first bin that would make it too many; within a bin there is none.
    first_E1 = lowest_E1 + within_E1
    last_E1 = torch.maximum(first_E1, highest_E1.double())
    place_E = torch.minimum(first_E1.clamp(min=num_bins / 2), last_E1).squeeze(1) / (num_bins / 2) - 1.0
    return (torch.sinh(place_E * _STRETCH) / math.sinh(_STRETCH)).float() * largest


def _largest_margin(bias_E: Tensor) -> Tensor:
    """Returns a bound on the absolute margins: scores are between 0 and 1."""
    return 1.0 + bias_E.max() - bias_E.min()


def _biases(model: Transformer) -> list[Tensor]:
    biases = [layer.selection_bias_E for layer in model.moe_layers()]
    present = [bias_E for bias_E in biases if bias_E is not None]
    assert len(present) == len(biases), "a model with this method in its config has the buffer"
    return present
