"""Admission as a loop over experts: slow, synchronising with the host, and the definition of correct.

Letters: T tokens, E experts, K experts per token, N = T*K pairs.
"""

import torch

from kernels.route.routing import Routing


def admit_reference(routing: Routing, *, num_null_experts: int, capacity: int | None, by_position: bool) -> Routing:
    """Returns what `kernels.admit` documents."""
    num_experts = routing.logits_TE.shape[1] - num_null_experts
    top_k, num_pairs = routing.top_k, routing.num_pairs
    experts, weights = routing.expert_ids_N.tolist(), routing.weights_N.tolist()

    def urgency(pair: int) -> tuple[float, int]:
        return (pair % top_k if by_position else -weights[pair], pair)

    admitted: list[list[int]] = []
    for expert in range(num_experts):
        wanted = sorted((pair for pair in range(num_pairs) if experts[pair] == expert), key=urgency)
        admitted.append(sorted(wanted[:capacity]))
    rows = [pair for pairs in admitted for pair in pairs]
    served = set(rows)
    order = rows + [pair for pair in range(num_pairs) if pair not in served]
    place = {pair: position for position, pair in enumerate(order)}

    device = routing.expert_ids_N.device
    is_served_N = torch.tensor([pair in served for pair in range(num_pairs)], device=device)
    is_null_N = routing.expert_ids_N >= num_experts
    counts_E = torch.tensor([len(pairs) for pairs in admitted], device=device)
    num_null = int(is_null_N.sum())
    num_served = [sum(pair in served for pair in range(first, first + top_k)) for first in range(0, num_pairs, top_k)]
    stats = routing.stats._replace(
        counts_E=routing.stats.counts_E[:num_experts],
        gate_mass_E=routing.stats.gate_mass_E[:num_experts],
        coverage_4=torch.tensor(
            [num_pairs - num_null - len(rows), num_null, num_served.count(0), sum(number**2 for number in num_served)],
            device=device,
        ),
    )
    null_weights_T = (routing.weights_N * is_null_N).view(-1, top_k).sum(dim=1)
    return routing._replace(
        weights_N=routing.weights_N * is_served_N,
        counts_E=counts_E,
        offsets_E=counts_E.cumsum(0).int(),
        permutation_N=torch.tensor(order, device=device),
        inverse_N=torch.tensor([place[pair] for pair in range(num_pairs)], device=device),
        stats=stats,
        is_partial=True,
        null_weights_T=null_weights_T if num_null_experts else None,
    )
