"""Routing of given pairs in vectorised torch operations: two sorts, no host synchronisation, no float atomics.

Letters: T tokens, E experts, N pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.route.routing import Routing, Score
from kernels.route.stats import RouterStats
from kernels.route.torch_path import statistics


def route_pairs_torch(
    logits_TE: Tensor, token_ids_N: Tensor, expert_ids_N: Tensor, *, score: Score, scale: float
) -> Routing:
    """Returns what `kernels.route_pairs` documents, for float32, bfloat16 and float16 logits."""
    logits_TE = logits_TE.float()
    num_tokens, num_experts = logits_TE.shape
    logsumexp_T = logits_TE.logsumexp(dim=-1)
    if score == "softmax":
        log_scores_TE = logits_TE - logsumexp_T[:, None]
        log_probs_TE = log_scores_TE
    else:
        log_scores_TE = F.logsigmoid(logits_TE)
        log_probs_TE = log_scores_TE.log_softmax(dim=-1)
    probs_TE = log_probs_TE.exp()

    with torch.no_grad():
        # A pair is one number, its cell of the matrix of tokens and experts; sorted, the cells stand in pair order.
        cell_N = (token_ids_N * num_experts + expert_ids_N).sort().values
        token_N, expert_N = cell_N // num_experts, cell_N % num_experts
        token_starts_T = torch.searchsorted(token_N, torch.arange(num_tokens, device=cell_N.device))
        by_expert = expert_N.sort(stable=True)
        ends_E = torch.searchsorted(by_expert.values, torch.arange(num_experts, device=cell_N.device), right=True)
        permutation_N = by_expert.indices
        places_N = torch.arange(cell_N.shape[0], device=cell_N.device)
        counts_E = torch.diff(ends_E, prepend=ends_E.new_zeros(1))
        num_pairs_T = torch.diff(token_starts_T, append=token_starts_T.new_full((1,), cell_N.shape[0]))

    # Every cell is taken at most once, so the backward pass, which scatters, adds nothing up.
    weights_N = log_scores_TE.reshape(-1).gather(0, cell_N).exp()
    if scale != 1.0:
        weights_N = weights_N * scale
    prob_sum_E = probs_TE.sum(dim=0)
    z_sum = torch.dot(logsumexp_T, logsumexp_T)

    with torch.no_grad():
        gates_TE = torch.zeros_like(logits_TE)
        gates_TE.view(-1).scatter_(0, cell_N, weights_N.detach())
        no_margin_T2 = logits_TE.new_zeros(1, 2)
        covered_2 = torch.stack(((num_pairs_T == 0).sum(), num_pairs_T.square().sum()))
        stats = RouterStats(
            stats_S=statistics(
                logits_TE,
                log_probs_TE,
                probs_TE,
                logsumexp_T,
                z_sum,
                probs_TE.reshape(-1).gather(0, cell_N),
                no_margin_T2,
            ),
            counts_E=counts_E,
            prob_sum_E=prob_sum_E.detach(),
            gate_mass_E=gates_TE.sum(dim=0),
            coverage_4=F.pad(covered_2, (2, 0)),
        )
    return Routing(
        expert_ids_N=expert_N,
        weights_N=weights_N,
        counts_E=counts_E,
        offsets_E=ends_E.int(),
        permutation_N=permutation_N,
        inverse_N=torch.empty_like(permutation_N).scatter_(0, permutation_N, places_N),
        prob_sum_E=prob_sum_E,
        z_sum=z_sum,
        stats=stats,
        logits_TE=logits_TE,
        score=score,
        token_ids_N=token_N,
        token_starts_T=token_starts_T,
    )
