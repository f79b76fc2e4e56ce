"""Admission by sorts of the pairs: no loop over experts, no host synchronisation, no shape that depends on data.

Letters: T tokens, E experts, K experts per token, N = T*K pairs, R the router's outputs (E and the null experts).
"""

import torch
from torch import Tensor

from kernels.route.routing import Routing


def admit_torch(routing: Routing, *, num_null_experts: int, capacity: int | None, by_position: bool) -> Routing:
    """Returns what `kernels.admit` documents, for float32 weights."""
    num_experts = routing.logits_TE.shape[1] - num_null_experts
    expert_ids_N, top_k = routing.expert_ids_N, routing.top_k
    with torch.no_grad():
        is_served_N = expert_ids_N < num_experts
        is_null_N = ~is_served_N
        if capacity is not None:
            is_served_N = is_served_N & (_rank_at_expert(routing, by_position=by_position) < capacity)
        # Pairs without an expert sort behind all others, as those of one more.
        by_expert = torch.where(is_served_N, expert_ids_N, num_experts).sort(stable=True)
        permutation_N = by_expert.indices
        places_N = torch.arange(routing.num_pairs, device=expert_ids_N.device)
        ends_E = torch.searchsorted(by_expert.values, torch.arange(num_experts, device=expert_ids_N.device), right=True)
        counts_E = torch.diff(ends_E, prepend=ends_E.new_zeros(1))
        demand_E = routing.stats.counts_E[:num_experts]
        num_wanted = demand_E.sum()
        num_served_T = is_served_N.view(-1, top_k).sum(dim=1)
        stats = routing.stats._replace(
            counts_E=demand_E,
            gate_mass_E=routing.stats.gate_mass_E[:num_experts],
            coverage_4=torch.stack(
                (
                    num_wanted - counts_E.sum(),
                    routing.num_pairs - num_wanted,
                    (num_served_T == 0).sum(),
                    num_served_T.square().sum(),
                )
            ),
        )
    null_weights_T = None
    if num_null_experts:
        null_weights_T = torch.where(is_null_N, routing.weights_N, 0.0).view(-1, top_k).sum(dim=1)
    return routing._replace(
        weights_N=torch.where(is_served_N, routing.weights_N, 0.0),
        counts_E=counts_E,
        offsets_E=ends_E.int(),
        permutation_N=permutation_N,
        inverse_N=torch.empty_like(permutation_N).scatter_(0, permutation_N, places_N),
        stats=stats,
        is_partial=True,
        null_weights_T=null_weights_T,
    )


def _rank_at_expert(routing: Routing, *, by_position: bool) -> Tensor:
    """Returns for each pair how many pairs of its expert have precedence over it, int64."""
    expert_ids_N = routing.expert_ids_N
    pairs_N = torch.arange(routing.num_pairs, device=expert_ids_N.device)
    if by_position:
        urgent_first_N = pairs_N.view(-1, routing.top_k).t().reshape(-1)
    else:
        urgent_first_N = routing.weights_N.detach().sort(descending=True, stable=True).indices
    by_expert = expert_ids_N[urgent_first_N].sort(stable=True)
    outputs_R = torch.arange(routing.logits_TE.shape[1], device=expert_ids_N.device)
    starts_R = torch.searchsorted(by_expert.values, outputs_R)
    rank_in_order_N = pairs_N - starts_R[by_expert.values]
    return torch.empty_like(pairs_N).scatter_(0, urgent_first_N[by_expert.indices], rank_in_order_N)
