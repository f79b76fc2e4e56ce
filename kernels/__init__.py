"""The MoE layer as four operations on tensors; this folder knows torch and triton and nothing else of the project.

    routing = route(logits_TE, top_k=K, normalize=True)
    x_ND = permute(x_TD, routing)
    y_ND = grouped_swiglu(x_ND, gate_up_E2FD, down_EFD, routing.offsets_E)
    out_TD = unpermute(y_ND, routing, routing.weights_N)

`route` makes every token choose K experts; `route_pairs` takes the pairs as they are, any number per token; `admit`
leaves out pairs that exceed an expert's capacity or go to null experts.

`kernels.quantize` gives `grouped_swiglu` matmuls in 8 and 4 bits.

Each operation has a naive reference that defines what is correct, and a fast torch path; `route` also has a Triton
kernel. `backend="auto"` picks one by device and dtype (`kernels.dispatch`).

Letters: T tokens, D model dim, F expert hidden dim, E experts, K experts per token, N routed pairs (T*K when
every token has K).
"""

from kernels.admit import Drop, admit
from kernels.dispatch import Backend, BackendUnavailable
from kernels.experts import Activation, ExpertBiases, GroupedMatmul, gated_activation, grouped_swiglu
from kernels.permute import permute, unpermute
from kernels.route import (
    NUM_SUM_SLOTS,
    STAT_NAMES,
    STAT_SLOTS,
    RouterStats,
    Routing,
    Score,
    assignments,
    distribution,
    largest_ids,
    route,
)
from kernels.route_pairs import route_pairs

__all__ = [
    "NUM_SUM_SLOTS",
    "STAT_NAMES",
    "STAT_SLOTS",
    "Activation",
    "Backend",
    "BackendUnavailable",
    "Drop",
    "ExpertBiases",
    "GroupedMatmul",
    "RouterStats",
    "Routing",
    "Score",
    "admit",
    "assignments",
    "distribution",
    "gated_activation",
    "grouped_swiglu",
    "largest_ids",
    "permute",
    "route",
    "route_pairs",
    "unpermute",
]
