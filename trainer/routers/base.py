"""What a router has to be.

Letters: T tokens, D model dim, E experts.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from kernels import Routing
from trainer.config.routers import RouterConfig


class Router(nn.Module, ABC):
    """Sends each token to experts. Its weights and its logits are float32, also under autocast.

    Every parameter of a router, however it is named, belongs to the optimizer's `router` group.
    """

    @abstractmethod
    def __init__(self, config: RouterConfig, *, dim: int, num_experts: int, top_k: int) -> None:
        """Builds the router of one layer."""
        super().__init__()

    @abstractmethod
    def forward(self, x_TD: Tensor, selection_bias_E: Tensor | None) -> Routing:
        """Returns the routing of `x_TD`; `selection_bias_E` (float32) shifts the choice, never the weights."""
