"""What a balancing method has to be.

Letters: L mixture-of-experts layers, E experts.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from trainer.config.balancing import BalancerConfig
from trainer.model.routing import LayerRouting
from trainer.model.transformer import Transformer


class Balancer(ABC):
    """A method acts through a loss, or on the model after a step, or both. It holds no state of its own: what it
    learns lives in the model's buffers and is checkpointed with them."""

    needs_selection_bias: ClassVar[bool] = False
    """Whether the mixture-of-experts layers must have the buffer `selection_bias_E`."""

    @abstractmethod
    def __init__(self, config: BalancerConfig) -> None:
        """Takes the method's own config."""

    def loss(self, routings: Sequence[LayerRouting]) -> Tensor | None:
        """Returns a float32 scalar to add to the loss of a micro-batch, coefficient included; None without a loss.

        Computed per layer, then averaged over the layers, so that it neither grows with depth nor lets one layer's
        surplus cancel another's.
        """
        del routings
        return None

    def after_step(self, model: Transformer, counts_LE: Tensor) -> None:
        """Acts on the model once per optimizer step.

        Args:
            model: the bare model, not wrapped in DistributedDataParallel.
            counts_LE: float32 routed pairs per layer and expert of the whole step, summed over micro-batches and ranks.
        """
        del model, counts_LE
