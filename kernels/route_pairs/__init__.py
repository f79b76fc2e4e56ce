"""Routing where the pairs are given: as experts that choose tokens, or gates that each decide alone, make them."""

from typing import get_args

import torch
from torch import Tensor

from kernels.dispatch import Backend, choose_backend, refuse_float64
from kernels.route.routing import Routing, Score
from kernels.route_pairs.reference import route_pairs_reference
from kernels.route_pairs.torch_path import route_pairs_torch

__all__ = ["route_pairs"]


def route_pairs(
    logits_TE: Tensor,
    token_ids_N: Tensor,
    expert_ids_N: Tensor,
    *,
    score: Score = "softmax",
    scale: float = 1.0,
    backend: Backend = "auto",
) -> Routing:
    """Returns the ragged routing of these pairs; each weight is the expert's score of the token, times `scale`.

    Experts that choose tokens pass their choice [E, C] as `choice_EC.flatten()` and `arange(E).repeat_interleave(C)`.
    The pairs of the routing are sorted by token, then by expert, whatever order they come in. Probabilities and
    statistics are those of the logits as in `kernels.route`, with a margin of 0: nothing was ranked per token. No host
    synchronisation except in the reference.

    Source: Zhou et al. 2022, arXiv:2202.09368, section 3.2 (weights and permutation of expert choice).

    Args:
        logits_TE: finite logits in float32, bfloat16 or float16; float64 goes to the reference and stays float64.
        token_ids_N, expert_ids_N: int64, no pair twice (trusted: looking would stop the device). N may be 0.
        score: how a logit becomes a score.
        scale: positive factor on the weights.
        backend: see `kernels.dispatch.choose_backend`.

    Raises:
        ValueError: an argument is of the wrong shape, dtype or device.
    """
    _check(logits_TE, token_ids_N, expert_ids_N, score)
    chosen = choose_backend(
        backend,
        op="route_pairs",
        device=logits_TE.device,
        implemented=("reference", "torch"),
        fast_refuses=refuse_float64(logits_TE.dtype),
    )
    implementation = route_pairs_torch if chosen == "torch" else route_pairs_reference
    return implementation(logits_TE, token_ids_N, expert_ids_N, score=score, scale=scale)


def _check(logits_TE: Tensor, token_ids_N: Tensor, expert_ids_N: Tensor, score: str) -> None:
    if logits_TE.dim() != 2 or 0 in logits_TE.shape or not logits_TE.is_floating_point():
        raise ValueError(
            f"logits_TE has shape {tuple(logits_TE.shape)} and dtype {logits_TE.dtype}; "
            "expected floating point (tokens, experts), both at least 1"
        )
    for name, ids_N in (("token_ids_N", token_ids_N), ("expert_ids_N", expert_ids_N)):
        if ids_N.dim() != 1 or ids_N.shape != token_ids_N.shape:
            raise ValueError(f"{name} has shape {tuple(ids_N.shape)}; expected one id per pair, as many as token_ids_N")
        if ids_N.dtype != torch.int64:
            raise ValueError(f"{name} has dtype {ids_N.dtype}; expected int64")
        if ids_N.device != logits_TE.device:
            raise ValueError(f"{name} is on {ids_N.device}; expected {logits_TE.device} as logits_TE")
    if score not in get_args(Score):
        raise ValueError(f"score={score!r} is unknown; choose one of {get_args(Score)}")
