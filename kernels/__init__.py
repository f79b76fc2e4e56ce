"""The MoE layer as four operations on tensors; this folder knows torch and triton and nothing else of the project.

    routing = route(logits_TE, top_k=K, normalize=True)
    x_ND = permute(x_TD, routing)
    y_ND = grouped_swiglu(x_ND, gate_EDF, up_EDF, down_EFD, routing.offsets_E)
    out_TD = unpermute(y_ND, routing, routing.weights_TK)

Each operation has a naive reference that defines what is correct, and a fast torch path; `route` also has a Triton
kernel. `backend="auto"` picks one by device and dtype (`kernels.dispatch`).

Letters: T tokens, D model dim, F expert hidden dim, E experts, K experts per token, N = T*K routed pairs.
"""

from kernels.dispatch import Backend, BackendUnavailable
from kernels.experts import grouped_swiglu
from kernels.permute import permute, unpermute
from kernels.route import NUM_SUM_SLOTS, STAT_NAMES, STAT_SLOTS, RouterStats, Routing, Score, distribution, route

__all__ = [
    "NUM_SUM_SLOTS",
    "STAT_NAMES",
    "STAT_SLOTS",
    "Backend",
    "BackendUnavailable",
    "RouterStats",
    "Routing",
    "Score",
    "distribution",
    "grouped_swiglu",
    "permute",
    "route",
    "unpermute",
]
