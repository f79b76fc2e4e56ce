"""Which pairs of a routing are computed: all, or those that fit an expert's capacity and go to no null expert."""

from typing import Literal, get_args

from kernels.admit.reference import admit_reference
from kernels.admit.torch_path import admit_torch
from kernels.dispatch import Backend, choose_backend, refuse_float64
from kernels.route.routing import Routing

__all__ = ["Drop", "admit"]

Drop = Literal["probability", "position"]


def admit(
    routing: Routing,
    *,
    num_null_experts: int = 0,
    capacity: int | None = None,
    drop: Drop = "probability",
    backend: Backend = "auto",
) -> Routing:
    """Returns the routing in which only admitted pairs have rows of experts; the others weigh 0 and stand at the end.

    The last `num_null_experts` outputs of the router are null experts, which compute nothing and take any number of
    tokens; what a token gave to them is in `null_weights_T`. Each of the others takes at most `capacity` pairs:

    - drop "probability" keeps those of largest weight, ties to the earlier token;
    - drop "position" keeps first choices before second ones and so on, and among equals the earlier token.

    The weights that remain are not divided by their sum anew, so that what a token loses is missing from its output,
    as in Switch and GShard. No host synchronisation except in the reference; shapes do not depend on what is dropped.

    Source: capacity: Fedus et al. 2021, arXiv:2101.03961, section 2.2; its order: Lepikhin et al. 2020 (GShard),
    arXiv:2006.16668, algorithm 1; by weight: Riquelme et al. 2021 (V-MoE), arXiv:2106.05974, section 4, there over the
    whole batch, here per expert as in Megatron-Core. Null experts: Jin et al. 2024 (MoE++), arXiv:2410.07348.

    Args:
        routing: a uniform routing with all its pairs, as `kernels.route` returns it, over E + num_null_experts outputs.
        num_null_experts: how many of the outputs are null experts.
        capacity: most pairs per expert; None for all.
        drop: which pairs exceed the capacity.
        backend: see `kernels.dispatch.choose_backend`.

    Raises:
        ValueError: the routing is ragged or has already been through here, or a number is out of range.
    """
    _check(routing, num_null_experts, capacity, drop)
    if capacity is not None and capacity >= routing.num_tokens:
        capacity = None  # an expert has a token at most once
    if capacity is None and not num_null_experts:
        return routing
    chosen = choose_backend(
        backend,
        op="admit",
        device=routing.permutation_N.device,
        implemented=("reference", "torch"),
        fast_refuses=refuse_float64(routing.weights_N.dtype),
    )
    implementation = admit_torch if chosen == "torch" else admit_reference
    return implementation(routing, num_null_experts=num_null_experts, capacity=capacity, by_position=drop == "position")


def _check(routing: Routing, num_null_experts: int, capacity: int | None, drop: str) -> None:
    if not routing.is_uniform or routing.is_partial:
        raise ValueError("the routing is ragged or partial; expected one that kernels.route made")
    num_outputs = routing.logits_TE.shape[1]
    if not 0 <= num_null_experts < num_outputs:
        raise ValueError(f"num_null_experts={num_null_experts} is out of range; expected 0 to {num_outputs - 1}")
    if capacity is not None and capacity < 1:
        raise ValueError(f"capacity={capacity} is out of range; expected at least 1, or None")
    if drop not in get_args(Drop):
        raise ValueError(f"drop={drop!r} is unknown; choose one of {get_args(Drop)}")
