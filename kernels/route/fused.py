"""Routing as two Triton kernels: one reads the logits once and writes everything, one turns the gradients back.

The forward kernel holds a tile of tokens with all their experts on chip and derives from it the choice, the weights,
the place of each pair among its expert's pairs in the tile, and one row of partial sums per tile: counts, probability
sums, gate mass and the statistics. The partial rows are reduced by torch, in a fixed order: no float atomics, so a
repeated pass gives the same bits. The statistics cost no further read of the logits.

Letters: T tokens, E experts, K experts per token, N = T*K pairs, S statistics slots, P tiles of tokens.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.route.routing import Routing, Score
from kernels.route.stats import NUM_SUM_SLOTS, STAT_NAMES, RouterStats

# Logits per tile. Compiled for sm_90 with 4 warps at E=64, K=8, the forward kernel takes 168 registers a thread at
# 1024; at 2048 it takes all 255 and starts to spill, at 4096 it spills 1168 bytes.
_TILE_ELEMENTS = 1024
_MAX_TILE_TOKENS = 64
_LOWEST = tl.constexpr(-3.4028234663852886e38)  # finite: real experts, NaN and -inf included, stay above the padding


class Plan(NamedTuple):
    """What fixes a specialisation of the kernels, besides the shapes."""

    top_k: int
    sigmoid: bool
    normalize: bool
    scale: float


def route_fused(
    logits_TE: Tensor, *, top_k: int, score: Score, normalize: bool, scale: float, selection_bias_E: Tensor | None
) -> Routing:
    """Returns what `kernels.route` documents; on a GPU, or on the CPU in Triton's interpreter."""
    plan = Plan(top_k=top_k, sigmoid=score == "sigmoid", normalize=normalize, scale=scale)
    outputs = _Route.apply(logits_TE, selection_bias_E, plan)
    (
        weights_TK,
        prob_sum_E,
        z_sum,
        expert_ids_TK,
        counts_E,
        offsets_E,
        permutation_N,
        inverse_N,
        stats_S,
        gate_mass_E,
    ) = outputs
    stats = RouterStats(stats_S=stats_S, counts_E=counts_E, prob_sum_E=prob_sum_E.detach(), gate_mass_E=gate_mass_E)
    return Routing(
        expert_ids_N=expert_ids_TK.view(-1),
        weights_N=weights_TK.view(-1),
        counts_E=counts_E,
        offsets_E=offsets_E,
        permutation_N=permutation_N,
        inverse_N=inverse_N,
        prob_sum_E=prob_sum_E,
        z_sum=z_sum,
        stats=stats,
        logits_TE=logits_TE,
        score=score,
    )


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_TE: Tensor, bias_E: Tensor | None, plan: Plan) -> tuple[Tensor, ...]:
        logits_TE = logits_TE.contiguous()
        num_tokens, num_experts = logits_TE.shape
        tile = _tile(num_tokens, num_experts)
        num_tiles = triton.cdiv(num_tokens, tile)
        new = logits_TE.new_empty
        ids_TK = new((num_tokens, plan.top_k), dtype=torch.int64)
        rank_TK = new((num_tokens, plan.top_k), dtype=torch.int32)
        weights_TK = new((num_tokens, plan.top_k), dtype=torch.float32)
        logsumexp_T = new((num_tokens,), dtype=torch.float32)
        counts_PE = new((num_tiles, num_experts), dtype=torch.int32)
        prob_sum_PE = new((num_tiles, num_experts), dtype=torch.float32)
        gate_mass_PE = new((num_tiles, num_experts), dtype=torch.float32)
        stats_PS = new((num_tiles, len(STAT_NAMES)), dtype=torch.float64)
        _route_forward[(num_tiles,)](
            logits_TE,
            bias_E if bias_E is not None else logits_TE,
            ids_TK,
            rank_TK,
            weights_TK,
            logsumexp_T,
            counts_PE,
            prob_sum_PE,
            gate_mass_PE,
            stats_PS,
            num_tokens,
            plan.scale,
            NUM_EXPERTS=num_experts,
            TOP_K=plan.top_k,
            NUM_SLOTS=len(STAT_NAMES),
            SIGMOID=plan.sigmoid,
            NORMALIZE=plan.normalize,
            HAS_BIAS=bias_E is not None,
            BLOCK_T=tile,
            BLOCK_E=triton.next_power_of_2(num_experts),
            BLOCK_K=triton.next_power_of_2(plan.top_k),
        )
        counts_E, offsets_E, permutation_N, inverse_N = _expert_order(ids_TK, rank_TK, counts_PE, tile)
        prob_sum_E = prob_sum_PE.sum(dim=0)
        stats_S = torch.cat((stats_PS[:, :NUM_SUM_SLOTS].sum(dim=0), stats_PS[:, NUM_SUM_SLOTS:].amax(dim=0)))
        z_sum = stats_S[STAT_NAMES.index("logsumexp_sq_sum")].float()
        gate_mass_E = gate_mass_PE.sum(dim=0)

        ctx.save_for_backward(logits_TE, ids_TK, weights_TK, logsumexp_T)
        ctx.plan = plan
        ctx.mark_non_differentiable(ids_TK, counts_E, offsets_E, permutation_N, inverse_N, stats_S, gate_mass_E)
        ctx.set_materialize_grads(False)
        return (
            weights_TK,
            prob_sum_E,
            z_sum,
            ids_TK,
            counts_E,
            offsets_E,
            permutation_N,
            inverse_N,
            stats_S,
            gate_mass_E,
        )

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor, None, None]:
        logits_TE, ids_TK, weights_TK, logsumexp_T = ctx.saved_tensors
        dweights_TK, dprob_sum_E, dz_sum = grad_outputs[:3]
        plan: Plan = ctx.plan
        num_tokens, num_experts = logits_TE.shape
        tile = _tile(num_tokens, num_experts)
        dlogits_TE = torch.empty_like(logits_TE)
        _route_backward[(triton.cdiv(num_tokens, tile),)](
            logits_TE,
            ids_TK,
            weights_TK,
            logsumexp_T,
            torch.zeros_like(weights_TK) if dweights_TK is None else dweights_TK.contiguous(),
            logsumexp_T.new_zeros(num_experts) if dprob_sum_E is None else dprob_sum_E.contiguous(),
            logsumexp_T.new_zeros(()) if dz_sum is None else dz_sum,
            dlogits_TE,
            num_tokens,
            plan.scale,
            NUM_EXPERTS=num_experts,
            TOP_K=plan.top_k,
            SIGMOID=plan.sigmoid,
            NORMALIZE=plan.normalize,
            BLOCK_T=tile,
            BLOCK_E=triton.next_power_of_2(num_experts),
        )
        return dlogits_TE, None, None


def _tile(num_tokens: int, num_experts: int) -> int:
    """Returns the tokens per program: a power of two, fewer for more experts."""
    wanted = max(1, _TILE_ELEMENTS // triton.next_power_of_2(num_experts))
    return min(wanted, _MAX_TILE_TOKENS, triton.next_power_of_2(num_tokens))


def _expert_order(
    ids_TK: Tensor, rank_TK: Tensor, counts_PE: Tensor, tile: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns counts, offsets, permutation and inverse from ranks within tiles: a counting sort without sorting.

    The place of a pair is the start of its expert, plus that expert's pairs in earlier tiles, plus its rank there.
    """
    num_tokens, top_k = ids_TK.shape
    running_PE = counts_PE.cumsum(dim=0)  # int64
    counts_E = running_PE[-1]
    ends_E = counts_E.cumsum(dim=0)
    first_place_PE = running_PE - counts_PE + (ends_E - counts_E)
    tile_T1 = torch.arange(num_tokens, device=ids_TK.device)[:, None] // tile
    inverse_N = (first_place_PE[tile_T1, ids_TK] + rank_TK).view(-1)
    pairs_N = torch.arange(num_tokens * top_k, device=ids_TK.device)
    permutation_N = torch.empty_like(inverse_N).scatter_(0, inverse_N, pairs_N)
    return counts_E.clone(), ends_E.int(), permutation_N, inverse_N


@triton.jit
def _log_sigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _route_forward(
    logits_ptr,
    bias_ptr,
    ids_ptr,
    rank_ptr,
    weights_ptr,
    logsumexp_ptr,
    counts_ptr,
    prob_sum_ptr,
    gate_mass_ptr,
    stats_ptr,
    num_tokens,
    scale,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
    SIGMOID: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    program = tl.program_id(0)
    tokens = program * BLOCK_T + tl.arange(0, BLOCK_T)
    experts = tl.arange(0, BLOCK_E)
    real_t = tokens < num_tokens
    real_e = experts < NUM_EXPERTS
    real = real_t[:, None] & real_e[None, :]
    cells = tokens[:, None].to(tl.int64) * NUM_EXPERTS + experts[None, :]

    # To float32 at once: bfloat16 arithmetic is imprecise on devices and wrong in the interpreter.
    # Padding experts are -inf, so that they weigh nothing; padding tokens are 0, so that nothing of theirs is NaN.
    logits = tl.load(logits_ptr + cells, mask=real, other=0.0).to(tl.float32)
    z = tl.where(real_e[None, :], logits, -float("inf"))
    z_top = tl.max(z, axis=1)
    logsumexp = z_top + tl.log(tl.sum(tl.exp(z - z_top[:, None]), axis=1))
    if SIGMOID:
        log_scores = tl.where(real_e[None, :], _log_sigmoid(logits), -float("inf"))
        s_top = tl.max(log_scores, axis=1)
        norm = s_top + tl.log(tl.sum(tl.exp(log_scores - s_top[:, None]), axis=1))
        log_probs = log_scores - norm[:, None]
    else:
        log_scores = z - logsumexp[:, None]
        log_probs = log_scores
    scores = tl.exp(log_scores)
    probs = tl.where(real, tl.exp(log_probs), 0.0)

    # K passes of argmax; a chosen expert falls to -inf, where the padding already is. Real loops, here and below:
    # unrolled, K=8 at a tile of 64 tokens and 64 experts compiled to 2 MB of machine code in 14 s.
    if HAS_BIAS:
        bias = tl.load(bias_ptr + experts, mask=real_e, other=0.0).to(tl.float32)
        selection = scores + bias[None, :]
        left = selection
    else:
        selection = scores
        left = z
    left = tl.where(left > _LOWEST, left, _LOWEST)
    left = tl.where(real_e[None, :], left, -float("inf"))
    columns = tl.arange(0, BLOCK_K)
    ids = tl.zeros((BLOCK_T, BLOCK_K), dtype=tl.int32)
    log_weights = tl.full((BLOCK_T, BLOCK_K), -float("inf"), dtype=tl.float32)
    for k in range(TOP_K):
        best = tl.argmax(left, axis=1, tie_break_left=True)
        hit = experts[None, :] == best[:, None]
        here = columns[None, :] == k
        ids = tl.where(here, best[:, None], ids)
        log_weights = tl.where(here, tl.sum(tl.where(hit, log_scores, 0.0), axis=1)[:, None], log_weights)
        left = tl.where(hit, -float("inf"), left)
    # No real expert is at -inf before it is chosen, so what fell and is real was chosen.
    chosen = (left == -float("inf")) & real

    if TOP_K < NUM_EXPERTS:
        last_chosen = tl.min(tl.where(chosen, selection, float("inf")), axis=1)
        first_refused = tl.max(tl.where(left > -float("inf"), selection, -float("inf")), axis=1)
        margin = tl.where(real_t, last_chosen - first_refused, 0.0)
    else:
        margin = tl.zeros((BLOCK_T,), dtype=tl.float32)

    if NORMALIZE:
        w_top = tl.max(log_weights, axis=1)
        shift = w_top + tl.log(tl.sum(tl.exp(log_weights - w_top[:, None]), axis=1))
    else:
        shift = tl.zeros((BLOCK_T,), dtype=tl.float32)
    weights = scale * tl.exp(log_weights - shift[:, None])
    gates = tl.where(chosen, scale * tl.exp(log_scores - shift[:, None]), 0.0)

    # Rank of each pair among the tile's pairs of its expert, by token.
    member = chosen.to(tl.int32)
    before = tl.cumsum(member, axis=0) - member
    ranks = tl.zeros((BLOCK_T, BLOCK_K), dtype=tl.int32)
    for k in range(TOP_K):
        here = columns[None, :] == k
        expert = tl.sum(tl.where(here, ids, 0), axis=1)
        rank = tl.sum(tl.where(experts[None, :] == expert[:, None], before, 0), axis=1)
        ranks = tl.where(here, rank[:, None], ranks)

    pairs = tokens[:, None].to(tl.int64) * TOP_K + columns[None, :]
    real_pairs = real_t[:, None] & (columns[None, :] < TOP_K)
    tl.store(ids_ptr + pairs, ids.to(tl.int64), mask=real_pairs)
    tl.store(rank_ptr + pairs, ranks, mask=real_pairs)
    tl.store(weights_ptr + pairs, weights, mask=real_pairs)
    tl.store(logsumexp_ptr + tokens, logsumexp, mask=real_t)

    row = program * NUM_EXPERTS + experts
    tl.store(counts_ptr + row, tl.sum(member, axis=0), mask=real_e)
    tl.store(prob_sum_ptr + row, tl.sum(probs, axis=0), mask=real_e)
    tl.store(gate_mass_ptr + row, tl.sum(gates, axis=0), mask=real_e)

    # Slots in the order of kernels.route.stats.STAT_SLOTS.
    one = tl.where(real_t, 1.0, 0.0)
    entropy = -tl.sum(probs * tl.where(real, log_probs, 0.0), axis=1)
    entropy = tl.where(real_t, entropy, 0.0).to(tl.float64)  # its spread is a difference of sums
    top_k_mass = tl.sum(tl.where(chosen, probs, 0.0), axis=1)
    stats = stats_ptr + program * NUM_SLOTS
    tl.store(stats + 0, tl.sum(one, axis=0))
    tl.store(stats + 1, tl.sum(entropy, axis=0))
    tl.store(stats + 2, tl.sum(entropy * entropy, axis=0))
    tl.store(stats + 3, tl.sum(one * logsumexp, axis=0))
    tl.store(stats + 4, tl.sum(one * logsumexp * logsumexp, axis=0))
    tl.store(stats + 5, tl.sum(one * top_k_mass, axis=0))
    tl.store(stats + 6, tl.sum(one * margin, axis=0))
    tl.store(stats + 7, tl.sum(tl.sum(tl.where(real, logits * logits, 0.0), axis=1), axis=0))
    tl.store(stats + 8, tl.max(tl.where(real_t, z_top, -float("inf")), axis=0))
    z_bottom = tl.min(tl.where(real, logits, float("inf")), axis=1)
    tl.store(stats + 9, -tl.min(z_bottom, axis=0))


@triton.jit
def _route_backward(
    logits_ptr,
    ids_ptr,
    weights_ptr,
    logsumexp_ptr,
    dweights_ptr,
    dprob_sum_ptr,
    dz_sum_ptr,
    dlogits_ptr,
    num_tokens,
    scale,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    SIGMOID: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    # With l the log-scores, w the weights, p the distribution and L the logsumexp of the logits z:
    #   weights:  dl_k = w_k (dw_k - sum_j w_j dw_j / scale) if normalised, else w_k dw_k
    #   prob_sum: dl_e += p_e (dP_e - sum_j p_j dP_j), p = softmax(l), which is softmax(z) where l = z - L
    #   scores:   dz_e = dl_e - softmax(z)_e sum_j dl_j  (softmax)   or   dl_e (1 - sigmoid(z_e))  (sigmoid)
    #   z_sum:    dz_e += 2 L softmax(z)_e dZ
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    experts = tl.arange(0, BLOCK_E)
    real_t = tokens < num_tokens
    real_e = experts < NUM_EXPERTS
    real = real_t[:, None] & real_e[None, :]
    cells = tokens[:, None].to(tl.int64) * NUM_EXPERTS + experts[None, :]

    logits = tl.load(logits_ptr + cells, mask=real, other=0.0).to(tl.float32)
    logsumexp = tl.load(logsumexp_ptr + tokens, mask=real_t, other=0.0)
    softmax = tl.where(real, tl.exp(logits - logsumexp[:, None]), 0.0)
    if SIGMOID:
        log_scores = tl.where(real_e[None, :], _log_sigmoid(logits), -float("inf"))
        s_top = tl.max(log_scores, axis=1)
        relative = tl.exp(log_scores - s_top[:, None])
        probs = relative / tl.sum(relative, axis=1)[:, None]
    else:
        probs = softmax

    dprob_sum = tl.load(dprob_sum_ptr + experts, mask=real_e, other=0.0).to(tl.float32)
    dlog = probs * (dprob_sum[None, :] - tl.sum(probs * dprob_sum[None, :], axis=1)[:, None])

    mean = tl.zeros((BLOCK_T,), dtype=tl.float32)
    if NORMALIZE:
        for k in range(TOP_K):
            pair = tokens.to(tl.int64) * TOP_K + k
            weight = tl.load(weights_ptr + pair, mask=real_t, other=0.0)
            mean += weight * tl.load(dweights_ptr + pair, mask=real_t, other=0.0).to(tl.float32)
        mean = mean / scale
    for k in range(TOP_K):
        pair = tokens.to(tl.int64) * TOP_K + k
        expert = tl.load(ids_ptr + pair, mask=real_t, other=0).to(tl.int32)
        weight = tl.load(weights_ptr + pair, mask=real_t, other=0.0)
        dweight = tl.load(dweights_ptr + pair, mask=real_t, other=0.0).to(tl.float32)
        dlog += tl.where(experts[None, :] == expert[:, None], (weight * (dweight - mean))[:, None], 0.0)

    through_softmax = softmax * tl.sum(dlog, axis=1)[:, None]
    dlogits = dlog * tl.exp(_log_sigmoid(-logits)) if SIGMOID else dlog - through_softmax
    dz = tl.load(dz_sum_ptr).to(tl.float32)
    dlogits += softmax * (2.0 * dz * logsumexp)[:, None]
    tl.store(dlogits_ptr + cells, dlogits.to(dlogits_ptr.dtype.element_ty), mask=real)
