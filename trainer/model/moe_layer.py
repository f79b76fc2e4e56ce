"""The mixture-of-experts feed-forward layer.

Letters: B sequences, L positions, T tokens (B*L), D model dim, F expert hidden dim, E experts, K experts per token,
N routed pairs (T*K).
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from kernels import Routing, grouped_swiglu, permute, unpermute
from trainer.balancing import BALANCERS
from trainer.config.model import MoEConfig
from trainer.model.dense_mlp import DenseMLP
from trainer.routers import ROUTERS


class Experts(nn.Module):
    """E SwiGLU networks in three stacked parameters, input dimension first as `kernels.grouped_swiglu` wants them."""

    residual_weights: ClassVar[tuple[str, ...]] = ("down_weight_EFD",)

    def __init__(self, *, num_experts: int, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_weight_EDF = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))
        self.up_weight_EDF = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))
        self.down_weight_EFD = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))

    def forward(self, x_ND: Tensor, offsets_E: Tensor) -> Tensor:
        """Returns the experts' outputs for rows in expert order."""
        return grouped_swiglu(x_ND, self.gate_weight_EDF, self.up_weight_EDF, self.down_weight_EFD, offsets_E)


class MoELayer(nn.Module):
    """Routes each token to K of E experts, adds their weighted outputs, and those of the shared experts.

    Dropless: every pair is computed. The shared experts are one MLP of `num_shared_experts * hidden_dim`, which equals
    their sum (Dai et al. 2024, DeepSeekMoE, arXiv:2401.06066, eq. 9). `selection_bias_E`, a persistent float32
    buffer, exists if a balancing method steers the selection by it.
    """

    selection_bias_E: Tensor | None

    def __init__(self, config: MoEConfig, *, dim: int) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.router = ROUTERS[config.router.kind](
            config.router, dim=dim, num_experts=config.num_experts, top_k=config.top_k
        )
        self.experts = Experts(num_experts=config.num_experts, dim=dim, hidden_dim=config.hidden_dim)
        shared_dim = config.num_shared_experts * config.hidden_dim
        self.shared = DenseMLP(dim, shared_dim) if shared_dim else None
        biased = any(BALANCERS[balancer.kind].needs_selection_bias for balancer in config.balancing)
        self.register_buffer("selection_bias_E", torch.zeros(config.num_experts) if biased else None)

    def forward(self, x_BLD: Tensor, tokens_BL: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Returns out_BLD, without the residual connection, and the routing; `tokens_BL` is for routers by token."""
        x_TD = x_BLD.flatten(0, -2)
        routing = self.router(x_TD, self.selection_bias_E, None if tokens_BL is None else tokens_BL.flatten())
        y_ND = self.experts(permute(x_TD, routing), routing.offsets_E)
        out_TD = unpermute(y_ND, routing, routing.weights_N)
        if self.shared is not None:
            out_TD = out_TD + self.shared(x_TD)
        return out_TD.view(x_BLD.shape), routing
