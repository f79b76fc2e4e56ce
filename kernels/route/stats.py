"""What a routing pass tells about itself: a vector of named slots and three vectors per expert, all on the device.

Every value is a sum over tokens (or a maximum), never a ratio, so that values of micro-batches and ranks can be
combined before anything is divided: `a.combine(b)`, or over ranks an all-reduce of `stats_S[:NUM_SUM_SLOTS]` with
SUM and of `stats_S[NUM_SUM_SLOTS:]` with MAX (both are views).
"""

from enum import StrEnum
from typing import NamedTuple, Self

import torch
from torch import Tensor


class Reduction(StrEnum):
    """How a slot of two disjoint sets of tokens becomes the slot of their union."""

    SUM = "sum"
    MAX = "max"


class StatSlot(NamedTuple):
    """One entry of `RouterStats.stats_S`."""

    name: str
    reduction: Reduction
    description: str


# z: the logits; p: the router's distribution (softmax of z, or sigmoid scores divided by their sum).
STAT_SLOTS = (
    StatSlot("num_tokens", Reduction.SUM, "tokens routed"),
    StatSlot("token_entropy_sum", Reduction.SUM, "sum over tokens of H = -sum_e p ln p, nats"),
    StatSlot("token_entropy_sq_sum", Reduction.SUM, "sum over tokens of H**2, for the spread of H"),
    StatSlot("logsumexp_sum", Reduction.SUM, "sum over tokens of ln sum_e exp z"),
    StatSlot(
        "logsumexp_sq_sum", Reduction.SUM, "sum over tokens of (ln sum_e exp z)**2: the router z-loss times tokens"
    ),
    StatSlot("top_k_mass_sum", Reduction.SUM, "sum over tokens of the p of the chosen experts"),
    StatSlot(
        "margin_sum", Reduction.SUM, "sum over tokens of the K-th minus the (K+1)-th selection score; 0 if K == E"
    ),
    StatSlot("logit_sq_sum", Reduction.SUM, "sum over tokens and experts of z**2"),
    StatSlot("logit_max", Reduction.MAX, "largest logit"),
    StatSlot("negated_logit_max", Reduction.MAX, "largest -z: minus the smallest logit"),
)
STAT_NAMES = tuple(slot.name for slot in STAT_SLOTS)
NUM_SUM_SLOTS = sum(slot.reduction is Reduction.SUM for slot in STAT_SLOTS)
assert all(slot.reduction is Reduction.SUM for slot in STAT_SLOTS[:NUM_SUM_SLOTS]), "slots that add come first"


class RouterStats(NamedTuple):
    """Statistics of one routing pass, detached; float32 where nothing else is said.

    stats_S: float64, the slots of STAT_SLOTS, in that order: a spread is a difference of sums, which float32 sums over
        thousands of tokens give to 1e-3 of the mean only.
    counts_E: int64, pairs routed to each expert: the demand, before any is dropped.
    prob_sum_E: sum over tokens of p; null experts after the E others.
    gate_mass_E: sum over the pairs of an expert of the weight the router gave them, before any is dropped.
    coverage_4: int64: pairs dropped, pairs sent to null experts, tokens that no expert computed, sum over tokens of the
        squared number of experts that computed them; None when every token is computed by all of its K.
    """

    stats_S: Tensor
    counts_E: Tensor
    prob_sum_E: Tensor
    gate_mass_E: Tensor
    coverage_4: Tensor | None = None

    @classmethod
    def identity(cls, num_experts: int, *, device: torch.device | str = "cpu") -> Self:
        """Returns the statistics of no tokens: `identity.combine(a)` equals `a`."""
        start_S = [0.0 if slot.reduction is Reduction.SUM else float("-inf") for slot in STAT_SLOTS]
        return cls(
            stats_S=torch.tensor(start_S, dtype=torch.float64, device=device),
            counts_E=torch.zeros(num_experts, dtype=torch.int64, device=device),
            prob_sum_E=torch.zeros(num_experts, dtype=torch.float32, device=device),
            gate_mass_E=torch.zeros(num_experts, dtype=torch.float32, device=device),
        )

    def combine(self, other: Self) -> Self:
        """Returns the statistics of the union of two disjoint sets of tokens; no host synchronisation."""
        added_S = self.stats_S[:NUM_SUM_SLOTS] + other.stats_S[:NUM_SUM_SLOTS]
        largest_S = torch.maximum(self.stats_S[NUM_SUM_SLOTS:], other.stats_S[NUM_SUM_SLOTS:])
        return type(self)(
            stats_S=torch.cat((added_S, largest_S)),
            counts_E=self.counts_E + other.counts_E,
            prob_sum_E=self.prob_sum_E + other.prob_sum_E,
            gate_mass_E=self.gate_mass_E + other.gate_mass_E,
            coverage_4=_added(self.coverage_4, other.coverage_4),
        )

    def slot(self, name: str) -> Tensor:
        """Returns the scalar tensor of one slot; ValueError names the slots there are."""
        if name not in STAT_NAMES:
            raise ValueError(f"slot {name!r} is unknown; choose one of {STAT_NAMES}")
        return self.stats_S[STAT_NAMES.index(name)]


def _added(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second
