"""Routing: logits to chosen experts, their weights, the expert order and the router's statistics, in one pass."""

import math
from typing import get_args

import torch
from torch import Tensor

from kernels.dispatch import Backend, choose_backend, refuse_float64
from kernels.route.reference import route_reference
from kernels.route.routing import Routing, Score, assignments, distribution
from kernels.route.stats import NUM_SUM_SLOTS, STAT_NAMES, STAT_SLOTS, Reduction, RouterStats, StatSlot
from kernels.route.torch_path import largest_ids, route_torch

__all__ = [
    "NUM_SUM_SLOTS",
    "STAT_NAMES",
    "STAT_SLOTS",
    "Reduction",
    "RouterStats",
    "Routing",
    "Score",
    "StatSlot",
    "assignments",
    "distribution",
    "largest_ids",
    "route",
]


def route(
    logits_TE: Tensor,
    *,
    top_k: int,
    normalize: bool,
    score: Score = "softmax",
    scale: float = 1.0,
    selection_bias_E: Tensor | None = None,
    selection_TE: Tensor | None = None,
    backend: Backend = "auto",
) -> Routing:
    """Returns the routing of T tokens to their `top_k` experts, computed in float32 whatever the dtype of the logits.

    The score of an expert is softmax(z)_e or sigmoid(z_e). Chosen are the K largest of score + selection_bias_E;
    the bias steers the choice only (Wang et al. 2024, arXiv:2408.15664, eq. 3), the weight is the score without it,
    divided by the sum over the chosen when `normalize`, times `scale`. Without a bias the choice is made on the
    logits, which order experts as the scores do and still tell them apart where the scores have saturated.
    Normalised weights are computed as a softmax over the log-scores of the chosen: there is no epsilon, and they
    sum to `scale` however small the scores. The distribution p of sigmoid scores is their softmax over log-scores
    likewise, so a router cannot lower the load-balancing loss by pushing all its scores under an epsilon. No host
    synchronisation except in the reference.

    An output may as well stand for a null expert: `kernels.admit` then takes its pairs out.

    Args:
        logits_TE: finite logits in float32, bfloat16 or float16; float64 goes to the reference and stays float64.
        top_k: experts per token, 1 to E.
        normalize: whether the weights of a token sum to `scale`.
        score: how a logit becomes a score.
        scale: positive factor on the weights.
        selection_bias_E: added to the scores for the choice; never differentiated.
        selection_TE: what to choose by instead, float32, for a router that chooses by more than its scores; never
            differentiated. Weights and statistics still are those of the logits, but for the margin: it is that of
            these values, 0 where the next one is -inf and so stands for an expert that is not allowed. Not in Triton.
        backend: see `kernels.dispatch.choose_backend`.

    Raises:
        ValueError: an argument is out of range or of the wrong shape, dtype or device.
    """
    _check(logits_TE, top_k, score, scale, selection_bias_E)
    _check_selection(logits_TE, selection_bias_E, selection_TE)
    chosen = choose_backend(
        backend,
        op="route",
        device=logits_TE.device,
        implemented=("reference", "torch", "triton") if selection_TE is None else ("reference", "torch"),
        fast_refuses=refuse_float64(logits_TE.dtype),
    )
    bias_E = None if selection_bias_E is None else selection_bias_E.detach()
    if chosen == "triton":
        from kernels.route.fused import route_fused  # triton is optional and heavy: imported where it is asked for

        return route_fused(
            logits_TE, top_k=top_k, score=score, normalize=normalize, scale=scale, selection_bias_E=bias_E
        )
    implementation = route_torch if chosen == "torch" else route_reference
    return implementation(
        logits_TE,
        top_k=top_k,
        score=score,
        normalize=normalize,
        scale=scale,
        selection_bias_E=bias_E,
        selection_TE=None if selection_TE is None else selection_TE.detach(),
    )


def _check(logits_TE: Tensor, top_k: int, score: str, scale: float, selection_bias_E: Tensor | None) -> None:
    if logits_TE.dim() != 2 or 0 in logits_TE.shape:
        raise ValueError(f"logits_TE has shape {tuple(logits_TE.shape)}; expected (tokens, experts), both at least 1")
    if not logits_TE.is_floating_point():
        raise ValueError(f"logits_TE has dtype {logits_TE.dtype}; expected a floating point dtype")
    num_experts = logits_TE.shape[1]
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k={top_k} is out of range; expected 1 to num_experts={num_experts}")
    if score not in get_args(Score):
        raise ValueError(f"score={score!r} is unknown; choose one of {get_args(Score)}")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale={scale} is not allowed; expected a positive finite number")
    if selection_bias_E is None:
        return
    if selection_bias_E.shape != (num_experts,):
        raise ValueError(f"selection_bias_E has shape {tuple(selection_bias_E.shape)}; expected ({num_experts},)")
    if selection_bias_E.device != logits_TE.device:
        raise ValueError(f"selection_bias_E is on {selection_bias_E.device}; expected {logits_TE.device} as logits_TE")
    if selection_bias_E.dtype != torch.float32 and selection_bias_E.dtype != logits_TE.dtype:
        raise ValueError(f"selection_bias_E has dtype {selection_bias_E.dtype}; expected float32 or that of logits_TE")


def _check_selection(logits_TE: Tensor, selection_bias_E: Tensor | None, selection_TE: Tensor | None) -> None:
    if selection_TE is None:
        return
    if selection_bias_E is not None:
        raise ValueError("selection_bias_E and selection_TE were both given; add the bias to the values chosen by")
    if selection_TE.shape != logits_TE.shape:
        raise ValueError(f"selection_TE has shape {tuple(selection_TE.shape)}; expected {tuple(logits_TE.shape)}")
    if selection_TE.dtype != torch.float32 and selection_TE.dtype != logits_TE.dtype:
        raise ValueError(f"selection_TE has dtype {selection_TE.dtype}; expected float32 or that of logits_TE")
    if selection_TE.device != logits_TE.device:
        raise ValueError(f"selection_TE is on {selection_TE.device}; expected {logits_TE.device} as logits_TE")
