"""The dense feed-forward network.

Letters: D model dim, F hidden dim.
"""

from typing import ClassVar

from torch import Tensor, nn

from kernels import Activation, gated_activation


class DenseMLP(nn.Module):
    """A gated MLP without biases; with SwiGLU down(silu(gate(x)) * up(x)).

    Source: Shazeer 2020, arXiv:2002.05202, eq. 6; other activations: `kernels.gated_activation`.
    """

    residual_weights: ClassVar[tuple[str, ...]] = ("down.weight",)

    def __init__(self, dim: int, hidden_dim: int, *, activation: Activation = "swiglu") -> None:
        super().__init__()
        self.activation: Activation = activation
        self.gate = nn.Linear(dim, hidden_dim, bias=False)
        self.up = nn.Linear(dim, hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output for `x` of shape (..., D), in the same shape."""
        return self.down(gated_activation(self.gate(x), self.up(x), self.activation))
