"""What a precision has to be."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

import torch

from trainer.config.precision import PrecisionConfig


class Precision(ABC):
    """The numeric types of the forward pass. Weights, gradients and optimizer states are float32 in all of them, and
    so are the router, the norms and the logits."""

    @abstractmethod
    def __init__(self, config: PrecisionConfig, device: torch.device) -> None:
        """Takes the precision's own config and the device the model is on."""

    @abstractmethod
    def autocast(self) -> AbstractContextManager[None]:
        """Returns a new context for one forward pass and its loss; the backward pass runs outside of it."""
