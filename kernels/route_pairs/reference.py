"""Routing of given pairs with lists and loops: slow, and the definition of correct.

Letters: T tokens, E experts, N pairs.
"""

import torch
from torch import Tensor

from kernels.route.routing import Routing, Score, distribution
from kernels.route.stats import STAT_NAMES, RouterStats


def route_pairs_reference(
    logits_TE: Tensor, token_ids_N: Tensor, expert_ids_N: Tensor, *, score: Score, scale: float
) -> Routing:
    """Returns what `kernels.route_pairs` documents; float64 logits are computed in float64 for gradient checks."""
    if logits_TE.dtype != torch.float64:
        logits_TE = logits_TE.float()
    num_tokens, num_experts = logits_TE.shape
    device = logits_TE.device
    pairs = sorted(zip(token_ids_N.tolist(), expert_ids_N.tolist(), strict=True))
    order = sorted(range(len(pairs)), key=lambda pair: (pairs[pair][1], pair))
    place = {pair: position for position, pair in enumerate(order)}
    tokens = [token for token, _ in pairs]
    experts = [expert for _, expert in pairs]

    def ids(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    scores_TE = logits_TE.softmax(dim=-1) if score == "softmax" else logits_TE.sigmoid()
    weights_N = scores_TE[ids(tokens), ids(experts)] * scale
    counts_E = ids([experts.count(expert) for expert in range(num_experts)])
    probs_TE = distribution(logits_TE, score)
    logsumexp_T = logits_TE.logsumexp(dim=-1)
    entropy_T = -torch.special.xlogy(probs_TE, probs_TE).sum(dim=-1)
    slots = {
        "num_tokens": torch.tensor(float(num_tokens), device=device),
        "token_entropy_sum": entropy_T.double().sum(),
        "token_entropy_sq_sum": entropy_T.double().square().sum(),
        "logsumexp_sum": logsumexp_T.sum(),
        "logsumexp_sq_sum": logsumexp_T.square().sum(),
        "top_k_mass_sum": probs_TE[ids(tokens), ids(experts)].sum(),
        "margin_sum": torch.zeros((), device=device),
        "logit_sq_sum": logits_TE.square().sum(),
        "logit_max": logits_TE.max(),
        "negated_logit_max": (-logits_TE).max(),
    }
    stats = RouterStats(
        stats_S=torch.stack([slots[name].detach().double() for name in STAT_NAMES]),
        counts_E=counts_E,
        prob_sum_E=probs_TE.detach().sum(dim=0).float(),
        gate_mass_E=torch.stack(
            [weights_N.detach()[ids(experts) == expert].sum() for expert in range(num_experts)]
        ).float(),
        coverage_4=ids(
            [0, 0, len(set(range(num_tokens)) - set(tokens)), sum(tokens.count(token) ** 2 for token in set(tokens))]
        ),
    )
    return Routing(
        expert_ids_N=ids(experts),
        weights_N=weights_N,
        counts_E=counts_E,
        offsets_E=counts_E.cumsum(0).int(),
        permutation_N=ids(order),
        inverse_N=ids([place[pair] for pair in range(len(order))]),
        prob_sum_E=probs_TE.sum(dim=0),
        z_sum=logsumexp_T.square().sum(),
        stats=stats,
        logits_TE=logits_TE,
        score=score,
        token_ids_N=ids(tokens),
        token_starts_T=ids([sum(other < token for other in tokens) for token in range(num_tokens)]),
    )
