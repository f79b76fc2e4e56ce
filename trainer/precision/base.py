"""What a precision has to be."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from trainer.config.precision import PrecisionConfig
from trainer.model.transformer import Transformer


class Precision(ABC):
    """The numeric types of forward and backward pass. Weights, their gradients and optimizer states are float32 in all
    of them, and so are the router, the norms and the logits.

    A precision has no state that a resumed run would need: scales come from the tensors as they are.
    """

    @abstractmethod
    def __init__(self, config: PrecisionConfig, device: torch.device) -> None:
        """Takes the precision's own config and the device the model is on."""

    @property
    @abstractmethod
    def description(self) -> str:
        """The kind, and where it matters whether the device computes in it or float32 emulates it."""

    @abstractmethod
    def autocast(self) -> AbstractContextManager[None]:
        """Returns a new context for one forward pass and its loss; the backward pass runs outside of it."""

    def apply_to(self, model: Transformer) -> None:
        """Sets up the model's layers, once, before the first forward pass; most precisions need nothing."""
        del model

    def take_cast_counts(self) -> Tensor | None:
        """Returns what casts lost in the forward and backward passes since the last call, evaluations left out.

        int64 [MoE layers, operands, counts] on the device (`kernels.quantize.OPERAND_NAMES`, `COUNT_NAMES`); None for a
        precision that does not quantise.
        """
        return None
