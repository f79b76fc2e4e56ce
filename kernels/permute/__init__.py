"""Moving rows between token order and expert order: `permute` before the experts, the weighted `unpermute` after."""

from torch import Tensor

from kernels.dispatch import Backend, choose_backend, refuse_float64
from kernels.permute.reference import permute_reference, unpermute_reference
from kernels.permute.torch_path import permute_torch, unpermute_torch
from kernels.route.routing import Routing

__all__ = ["permute", "unpermute"]


def permute(x_TD: Tensor, routing: Routing, *, backend: Backend = "auto") -> Tensor:
    """Returns x_ND: a copy of each token's row for each of its pairs, in expert order.

    The rows behind `routing.offsets_E[-1]` belong to no expert; what they hold is arbitrary but finite, and their
    gradient is not read.

    The gradient of a token is the float32 sum over its copies, gathered through the inverse permutation:
    deterministic, where the backward of plain indexing would add rows atomically on CUDA.

    Raises:
        ValueError: `x_TD` is not a matrix with one row per routed token, or is on another device.
    """
    _check_rows("x_TD", x_TD, routing.num_tokens, routing)
    implementation = permute_torch if _choose("permute", x_TD, backend) == "torch" else permute_reference
    return implementation(x_TD, routing)


def unpermute(y_ND: Tensor, routing: Routing, weights: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Returns out_TD: for each token the sum over its pairs of weight times row, summed in float32.

    A token without pairs gets zeros. The result has the dtype of `y_ND`. Differentiable with respect to the rows and
    the weights.

    Args:
        y_ND: rows in expert order; those behind `routing.offsets_E[-1]` are not read and may hold anything.
        routing: what permuted them.
        weights: one per pair, as weights_N in pair order or, of a uniform routing, as weights_TK.
        backend: see `kernels.dispatch.choose_backend`.

    Raises:
        ValueError: `y_ND` has not one row per routed pair, or `weights` not one weight per routed pair.
    """
    _check_rows("y_ND", y_ND, routing.num_pairs, routing)
    _check_weights(weights, routing)
    implementation = unpermute_torch if _choose("unpermute", y_ND, backend) == "torch" else unpermute_reference
    return implementation(y_ND, routing, weights.reshape(-1))


def _choose(op: str, rows: Tensor, backend: Backend) -> str:
    return choose_backend(
        backend,
        op=op,
        device=rows.device,
        implemented=("reference", "torch"),
        fast_refuses=refuse_float64(rows.dtype),
    )


def _check_rows(name: str, rows: Tensor, expected: int, routing: Routing) -> None:
    if rows.dim() != 2 or rows.shape[0] != expected:
        raise ValueError(
            f"{name} has shape {tuple(rows.shape)}; expected ({expected}, dim) for a routing of "
            f"{routing.num_tokens} tokens in {routing.num_pairs} pairs with experts"
        )
    if rows.device != routing.permutation_N.device:
        raise ValueError(f"{name} is on {rows.device}; expected {routing.permutation_N.device} as the routing")


def _check_weights(weights: Tensor, routing: Routing) -> None:
    if weights.shape == (routing.num_pairs,):
        return
    if routing.is_uniform:
        shape = (routing.num_tokens, routing.top_k)
        if weights.shape != shape:
            raise ValueError(f"weights_TK has shape {tuple(weights.shape)}; expected {shape} as the routing")
    else:
        raise ValueError(
            f"weights_N has shape {tuple(weights.shape)}; expected ({routing.num_pairs},) as the ragged routing"
        )
