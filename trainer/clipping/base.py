"""What a clipping method has to be."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from trainer.config.clipping import ClippingConfig


class Clipper(nn.Module, ABC):
    """Bounds the gradient of a step in place, without waiting for the device.

    What it learns lives in its buffers: they are checkpointed, and put back when a step is skipped. It sees gradients
    that are averaged over the workers, so the buffers are equal on all of them.
    """

    @abstractmethod
    def __init__(self, config: ClippingConfig, model: nn.Module) -> None:
        """Takes the method's own config and the model whose trained parameters' gradients it clips."""
        super().__init__()

    @abstractmethod
    def clip(self, grad_norm: Tensor) -> None:
        """Scales the gradients of the model's parameters down, and learns from them.

        Args:
            grad_norm: float32 scalar, the L2 norm of all gradients together.
        """


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that are trained, in the order of the model."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
