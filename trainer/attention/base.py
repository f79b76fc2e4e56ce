"""What an attention variant has to be.

Letters: B sequences, L positions, D model dim.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainer.attention.decoding import Past
from trainer.attention.documents import Documents
from trainer.config.attention import AttentionConfig


class Attention(nn.Module, ABC):
    """Causal self-attention: position i of the output depends on positions <= i of the input only.

    A variant owns its positions (rotary or other), so the block around it need not know how it tells order.
    """

    residual_weights: ClassVar[tuple[str, ...]]
    """Names of the parameters that write into the residual stream; the initialisation scales them down."""

    @abstractmethod
    def __init__(self, config: AttentionConfig, *, dim: int, norm_eps: float) -> None:
        """Builds the variant for a model of width `dim`; `norm_eps` is that of the model's other norms."""
        super().__init__()

    def special_start(self, name: str, generator: torch.Generator) -> Tensor | None:
        """Returns the start of the variant's parameter `name`, float32 on the CPU, or None where the model's rule fits.

        The rule: gains are 1, matrices normal (`trainer.model.build`). `generator` is the parameter's own.
        """
        return None

    @abstractmethod
    def forward(self, x_BLD: Tensor, documents: Documents | None = None) -> Tensor:
        """Returns the attended out_BLD for the normalised input, without the residual connection.

        With `documents` nothing passes from one document of a sequence to the next: each has the output it has alone.
        """

    @abstractmethod
    def decode(self, x_BD: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """Returns out_BD of the next position, equal to that of `forward`, and what the position after it needs.

        `past` is what the position before returned; None at the first.
        """
