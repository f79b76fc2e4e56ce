"""No clipping."""

from torch import Tensor, nn

from trainer.clipping.base import Clipper
from trainer.config.clipping import NoClippingConfig


class NoClipping(Clipper):
    """Leaves the gradient as it is."""

    def __init__(self, config: NoClippingConfig, model: nn.Module) -> None:
        super().__init__(config, model)

    def clip(self, grad_norm: Tensor) -> None:
        del grad_norm
