"""The mixture-of-experts feed-forward layer.

Letters: B sequences, L positions, T tokens (B*L), D model dim, F expert hidden dim, E experts, K experts per token,
N routed pairs (T*K where tokens choose).
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from kernels import Activation, ExpertBiases, GroupedMatmul, Routing, admit, grouped_swiglu, permute, unpermute
from trainer.balancing import BALANCERS
from trainer.config.model import MoEConfig
from trainer.model.dense_mlp import DenseMLP
from trainer.routers import ROUTERS


class Experts(nn.Module):
    """E gated networks in two stacked parameters, as `kernels.grouped_swiglu` wants them.

    With `bias` three more, one row per expert. `matmul` multiplies in their place where a precision has set it
    (`trainer.precision.quantized_experts`).
    """

    residual_weights: ClassVar[tuple[str, ...]] = ("down_weight_EFD",)

    gate_bias_EF: nn.Parameter | None
    up_bias_EF: nn.Parameter | None
    down_bias_ED: nn.Parameter | None

    def __init__(
        self, *, num_experts: int, dim: int, hidden_dim: int, activation: Activation = "swiglu", bias: bool = False
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.matmul: GroupedMatmul | None = None
        self.gate_up_weight_E2FD = nn.Parameter(torch.empty(num_experts, 2, hidden_dim, dim))
        self.down_weight_EFD = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        widths = {"gate_bias_EF": hidden_dim, "up_bias_EF": hidden_dim, "down_bias_ED": dim}
        for name, width in widths.items():
            self.register_parameter(name, nn.Parameter(torch.empty(num_experts, width)) if bias else None)

    @property
    def biases(self) -> ExpertBiases | None:
        """The biases of the three projections, if the experts have them."""
        if self.gate_bias_EF is None or self.up_bias_EF is None or self.down_bias_ED is None:
            return None
        return ExpertBiases(self.gate_bias_EF, self.up_bias_EF, self.down_bias_ED)

    def forward(self, x_ND: Tensor, offsets_E: Tensor) -> Tensor:
        """Returns the experts' outputs for rows in expert order."""
        return grouped_swiglu(
            x_ND,
            self.gate_up_weight_E2FD,
            self.down_weight_EFD,
            offsets_E,
            activation=self.activation,
            biases=self.biases,
            matmul=self.matmul,
        )


class MoELayer(nn.Module):
    """Routes each token to K of E experts, adds their weighted outputs, and those of the shared experts.

    Dropless unless the config has a capacity, which acts in training. Null experts are outputs of the router without
    modules (`kernels.admit`). The shared experts are one MLP of `num_shared_experts * hidden_dim`, which equals their
    sum (Dai et al. 2024, DeepSeekMoE, arXiv:2401.06066, eq. 9); `shared_gate` weighs them per token, as in
    Qwen1.5-MoE. `output_scale`, a number or a parameter of one element, multiplies the routed experts' sum alone.
    `selection_bias_E`, a persistent float32 buffer, exists if a balancing method steers the selection by it.
    """

    selection_bias_E: Tensor | None
    output_scale: nn.Parameter | float | None

    def __init__(self, config: MoEConfig, *, dim: int) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.top_k = config.top_k
        self.capacity = config.capacity
        self.num_null_experts = config.num_null_experts
        self.null_is_identity = config.null_expert == "identity"
        self.router = ROUTERS[config.router.kind](
            config.router, dim=dim, num_experts=config.num_router_outputs, top_k=config.top_k
        )
        self.experts = Experts(
            num_experts=config.num_experts,
            dim=dim,
            hidden_dim=config.hidden_dim,
            activation=config.activation,
            bias=config.expert_bias,
        )
        shared_dim = config.num_shared_experts * config.hidden_dim
        self.shared = DenseMLP(dim, shared_dim, activation=config.activation) if shared_dim else None
        self.shared_gate = nn.Linear(dim, 1, bias=False) if config.shared_gate else None
        scale = config.output_scale
        self.output_scale_start = None if scale is None else scale.init
        self.output_scale = (
            nn.Parameter(torch.empty(1)) if scale is not None and scale.learned else self.output_scale_start
        )
        biased = any(BALANCERS[balancer.kind].needs_selection_bias for balancer in config.balancing)
        self.register_buffer("selection_bias_E", torch.zeros(config.num_router_outputs) if biased else None)

    def special_start(self, name: str, generator: torch.Generator) -> Tensor | None:
        """Returns the start of this layer's parameter `name`, float32 on the CPU, or None where the model's rule fits.

        Biases of router and experts start at 0, which changes nothing yet; the output scale where its config says.
        """
        del generator
        if name == "output_scale" and self.output_scale_start is not None:
            return torch.tensor([self.output_scale_start])
        return torch.zeros(self.get_parameter(name).shape) if "bias" in name.rpartition(".")[2] else None

    def forward(self, x_BLD: Tensor, tokens_BL: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Returns out_BLD, without the residual connection, and the routing; `tokens_BL` is for routers by token."""
        x_TD = x_BLD.flatten(0, -2)
        tokens_T = None if tokens_BL is None else tokens_BL.flatten()
        routing = self.router(x_TD, self.selection_bias_E, tokens_T, num_sequences=len(x_BLD))
        routing = self._admitted(routing)
        y_ND = self.experts(permute(x_TD, routing), routing.offsets_E)
        weights_N, null_weights_T = routing.weights_N, routing.null_weights_T
        if self.output_scale is not None:
            weights_N = weights_N * self.output_scale  # a number per pair instead of D per token
            null_weights_T = None if null_weights_T is None else null_weights_T * self.output_scale
        out_TD = unpermute(y_ND, routing, weights_N)
        if null_weights_T is not None and self.null_is_identity:
            out_TD = out_TD + (null_weights_T[:, None] * x_TD).to(out_TD.dtype)
        if self.shared is not None:
            shared_TD = self.shared(x_TD)
            if self.shared_gate is not None:
                shared_TD = shared_TD * self.shared_gate(x_TD).sigmoid()
            out_TD = out_TD + shared_TD
        return out_TD.view(x_BLD.shape), routing

    def _admitted(self, routing: Routing) -> Routing:
        """Returns the routing without what exceeds the experts' capacity and what null experts were chosen for."""
        slots = None
        if self.capacity is not None and self.training:
            slots = self.capacity.slots(routing.num_tokens, num_experts=self.num_experts, top_k=self.top_k)
        if slots is None and not self.num_null_experts:
            return routing
        drop = "probability" if self.capacity is None else self.capacity.drop
        return admit(routing, num_null_experts=self.num_null_experts, capacity=slots, drop=drop)
