"""Routing as one would write it on a blackboard: slow, synchronising with the host, and the definition of correct.

Letters: T tokens, E experts, K experts per token, N = T*K pairs, S statistics slots.
"""

import torch
from torch import Tensor

from kernels.route.routing import Routing, Score
from kernels.route.stats import STAT_NAMES, RouterStats


def route_reference(
    logits_TE: Tensor,
    *,
    top_k: int,
    score: Score,
    normalize: bool,
    scale: float,
    selection_bias_E: Tensor | None,
    selection_TE: Tensor | None = None,
) -> Routing:
    """Returns what `kernels.route` documents; float64 logits are computed in float64 for gradient checks."""
    if logits_TE.dtype != torch.float64:
        logits_TE = logits_TE.float()
    num_experts = logits_TE.shape[1]

    if score == "softmax":
        scores_TE = logits_TE.softmax(dim=-1)
        probs_TE = scores_TE
    else:
        scores_TE = logits_TE.sigmoid()
        probs_TE = scores_TE / scores_TE.sum(dim=-1, keepdim=True)

    if selection_TE is not None:
        ranked_by_TE = selection_TE
    else:
        ranked_by_TE = logits_TE if selection_bias_E is None else scores_TE + selection_bias_E
    ranking_TE = _experts_by_falling_value(ranked_by_TE)
    expert_ids_TK = ranking_TE[:, :top_k]

    weights_TK = scores_TE.gather(1, expert_ids_TK)
    if normalize:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    weights_TK = weights_TK * scale

    expert_of_pair = expert_ids_TK.flatten().tolist()
    order = sorted(range(len(expert_of_pair)), key=lambda pair: (expert_of_pair[pair], pair))
    place = {pair: position for position, pair in enumerate(order)}
    counts = [expert_of_pair.count(expert) for expert in range(num_experts)]

    device = logits_TE.device
    counts_E = torch.tensor(counts, dtype=torch.int64, device=device)
    prob_sum_E = probs_TE.sum(dim=0)
    logsumexp_T = logits_TE.logsumexp(dim=-1)
    stats = _statistics(
        logits_TE.detach(),
        probs_TE.detach(),
        scores_TE.detach() if ranked_by_TE is logits_TE else ranked_by_TE.detach(),
        weights_TK.detach(),
        ranking_TE,
        counts_E,
    )
    return Routing(
        expert_ids_N=expert_ids_TK.flatten(),
        weights_N=weights_TK.flatten(),
        counts_E=counts_E,
        offsets_E=counts_E.cumsum(0).int(),
        permutation_N=torch.tensor(order, dtype=torch.int64, device=device),
        inverse_N=torch.tensor([place[pair] for pair in range(len(order))], dtype=torch.int64, device=device),
        prob_sum_E=prob_sum_E,
        z_sum=logsumexp_T.square().sum(),
        stats=stats,
        logits_TE=logits_TE,
        score=score,
    )


def _experts_by_falling_value(value_TE: Tensor) -> Tensor:
    """Returns for each token all experts, best first, ties to the lower id."""
    rows = [
        sorted(range(len(values)), key=lambda expert, values=values: (-values[expert], expert))
        for values in value_TE.tolist()
    ]
    return torch.tensor(rows, dtype=torch.int64, device=value_TE.device)


def _statistics(
    logits_TE: Tensor, probs_TE: Tensor, selection_TE: Tensor, weights_TK: Tensor, ranking_TE: Tensor, counts_E: Tensor
) -> RouterStats:
    num_tokens, num_experts = logits_TE.shape
    top_k = weights_TK.shape[1]
    entropy_T = -torch.special.xlogy(probs_TE, probs_TE).sum(dim=-1)
    logsumexp_T = logits_TE.logsumexp(dim=-1)
    ranked_TE = selection_TE.gather(1, ranking_TE)
    margin_T = ranked_TE[:, top_k - 1] - ranked_TE[:, top_k] if top_k < num_experts else torch.zeros_like(entropy_T)
    margin_T = torch.where(margin_T.isinf(), 0.0, margin_T)  # the next expert was not allowed
    gate_mass_E = [weights_TK[ranking_TE[:, :top_k] == expert].sum() for expert in range(num_experts)]
    slots = {
        "num_tokens": torch.tensor(float(num_tokens), device=logits_TE.device),
        "token_entropy_sum": entropy_T.double().sum(),
        "token_entropy_sq_sum": entropy_T.double().square().sum(),
        "logsumexp_sum": logsumexp_T.sum(),
        "logsumexp_sq_sum": logsumexp_T.square().sum(),
        "top_k_mass_sum": probs_TE.gather(1, ranking_TE[:, :top_k]).sum(),
        "margin_sum": margin_T.sum(),
        "logit_sq_sum": logits_TE.square().sum(),
        "logit_max": logits_TE.max(),
        "negated_logit_max": (-logits_TE).max(),
    }
    return RouterStats(
        stats_S=torch.stack([slots[name].double() for name in STAT_NAMES]),
        counts_E=counts_E,
        prob_sum_E=probs_TE.sum(dim=0).float(),
        gate_mass_E=torch.stack(gate_mass_E).float(),
    )
